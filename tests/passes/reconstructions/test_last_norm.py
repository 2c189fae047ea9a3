"""The norm before the output layer after a cut: it brings the predictions nearer to those of the dense model."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import CalibrationError
from graphprune.evaluation import teacher_distance
from graphprune.evaluation.perplexity import logits_function
from graphprune.ir.program import Program, Rewritten
from graphprune.ir.weights import Layered
from graphprune.passes.reconstructions import last_norm
from graphprune.passes.reconstructions.last_norm import LastNorm
from graphprune.planning.facts import Refits, RefittedNorm

WORDS, WIDTH = 40, 16


class AboutOne(nn.Module):
    """A norm whose weight is added to one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1.0 + self.weight)


class Decoder(nn.Module):
    """A causal model: every token sees the mean of those up to it."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(WORDS, WIDTH), norm(WIDTH)
        self.up, self.down, self.head = nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        x = x + x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def decoder(norm: Callable[[int], nn.Module] = nn.LayerNorm) -> nn.Module:
    torch.manual_seed(0)
    made = Decoder(norm).eval()
    made.head.weight.data *= 4
    return made


def windows(count: int, seed: int = 1) -> Tensor:
    return torch.randint(WORDS, (count, 24), generator=torch.Generator().manual_seed(seed))


def cut(made: nn.Module, batches: int = 16) -> Program:
    """A decoder without half of its neurons, calibrated on batches of 8 windows."""
    calls: Any = tuple(((), {"input_ids": part}) for part in torch.split(windows(8 * batches), 8))
    steps = gp.Analyze(), gp.Calibrate(batches=calls), gp.Score("fasp"), gp.Allocate(ratio=0.5), gp.Select()
    return gp.Pipeline((*steps, gp.Rewrite()))(gp.trace(made, (), {"input_ids": windows(2)}))


def divergence(pruned: Program) -> float:
    """Of the predictions from those of the dense model, for windows that no pass has seen."""
    unseen, dense = windows(64, seed=9), pruned.fact(Rewritten).original
    with torch.no_grad():
        a, b = (logits_function(one)(unseen).log_softmax(-1) for one in (dense, pruned))
    return float((a.exp() * (a - b)).sum() / unseen.numel())


@pytest.mark.parametrize(
    ("norm", "names"),
    [
        (nn.LayerNorm, ("norm.bias", "norm.weight")),
        (nn.RMSNorm, ("norm.weight",)),
        (AboutOne, ("norm.weight",)),
    ],
)  # fmt: skip
def test_the_predictions_of_unseen_windows_come_nearer(norm: Callable[[int], nn.Module], names: tuple[str]) -> None:
    program = cut(decoder(norm))
    done = LastNorm()(program)
    fact = done.fact(RefittedNorm)
    assert sorted(fact.names) == list(done.fact(Refits).tuned) == list(names)
    assert divergence(done) < 0.95 * divergence(program)
    assert fact.before == pytest.approx(divergence(program), rel=0.2)
    assert fact.after == pytest.approx(divergence(done), rel=0.2)
    changed = {name for name in program.parameters if not torch.equal(program.weights[name], done.weights[name])}
    assert changed == set(names)
    assert re.search(r"refitted norm.weight.*: the divergence .* -> .* nats a token", fact.notes()[0])


def test_what_one_step_of_newton_reaches() -> None:
    """Only the last norm is wrong, by little: the step returns to the parameters of the dense model."""
    program = cut(decoder())
    rewritten = program.fact(Rewritten)
    dense = rewritten.original
    wrong = {"norm.weight": dense.weights["norm.weight"] * 1.1, "norm.bias": dense.weights["norm.bias"] + 0.05}
    same = program.with_facts(graph=dense.graph, weights=Layered((wrong, dense.weights)), parameters=dense.parameters)
    done = LastNorm(most_tokens=100_000)(same)
    assert done.fact(RefittedNorm).after < 0.02 * done.fact(RefittedNorm).before
    assert (done.weights["norm.weight"] - 1).abs().max() < 0.03


def test_a_model_in_half_precision() -> None:
    program = cut(decoder().bfloat16())
    done = LastNorm()(program)
    assert done.fact(RefittedNorm).names and done.weights["norm.weight"].dtype == torch.bfloat16
    assert divergence(done) < 0.95 * divergence(program)


def test_without_an_error_nothing_changes() -> None:
    program = cut(decoder())
    dense = program.fact(Rewritten).original
    same = program.with_facts(graph=dense.graph, weights=dense.weights, parameters=dense.parameters)
    done = LastNorm()(same)
    assert done.fact(RefittedNorm).names == () and done.fact(Refits).tuned == ()
    assert done.fact(RefittedNorm).notes() == (
        "the last norm was not refitted: no step lowers the divergence from the dense predictions",
    )


def test_the_gradient_and_information_are_those_of_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    sums = last_norm._Newton._sums

    def watched(newton: Any, start: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        seen.append(sums(newton, start))
        return seen[-1]

    monkeypatch.setattr(last_norm._Newton, "_sums", watched)
    program = cut(decoder(nn.RMSNorm), batches=9)
    LastNorm()(program)
    module, dense = program.module(), program.fact(Rewritten).original.module()
    weight = dict(module.named_parameters())["norm.weight"]
    x = windows(8 * 9)[: 8 * 7]  # the eighth batch is held out, and the ninth comes last
    x = torch.cat([x, windows(8 * 9)[8 * 8 :]])
    log, other = module(input_ids=x).log_softmax(-1), dense(input_ids=x).log_softmax(-1)
    (expected,) = torch.autograd.grad((other.exp() * (other - log)).sum(), weight)
    torch.testing.assert_close(seen[0][0].float(), expected, rtol=1e-3, atol=1e-3)
    assert torch.linalg.eigvalsh(seen[0][1]).min() > 0


class Padded(nn.Module):
    """A decoder that takes a mask of padding, which is at the end: no token before sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = decoder()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.decoder(input_ids) + 0 * attention_mask[..., None]  # type: ignore[no-any-return]


def test_padding_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, whole = set[int](), teacher_distance.divergence

    def counted(pruned: Tensor, dense: Tensor) -> Tensor:
        counts.add(len(pruned))
        return whole(pruned, dense)

    monkeypatch.setattr(last_norm, "divergence", counted)
    mask = torch.ones(8, 24, dtype=torch.long)
    mask[:, 20:] = 0
    inputs = [{"input_ids": part, "attention_mask": mask} for part in torch.split(windows(72), 8)]
    steps = (
        gp.Analyze(), gp.Calibrate(batches=tuple(((), named) for named in inputs)), gp.Score("fasp"),
        gp.Allocate(ratio=0.5), gp.Select(), gp.Rewrite(),
    )  # fmt: skip
    done = gp.Pipeline(steps)(gp.trace(Padded().eval(), (), inputs[0]))
    LastNorm()(done)
    assert counts == {8 * 20}


class Flat(nn.Module):
    """A norm of all tokens in one list."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.nn.functional.layer_norm(x, x.shape[-1:]).flatten(0, 1) * self.weight).view_as(x)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm, self.head = (
            nn.Linear(8, 24), nn.Linear(24, 8), nn.LayerNorm(8), nn.Linear(8, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x + self.down(torch.relu(self.up(x)))))  # type: ignore[no-any-return]


def test_other_models_are_unchanged() -> None:
    calls: Any = tuple(((torch.randn(4, 8),), {}) for _ in range(9))
    steps = gp.Analyze(), gp.Calibrate(batches=calls), gp.Score("fasp"), gp.Allocate(ratio=0.5), gp.Select()
    program = gp.Pipeline((*steps, gp.Rewrite()))(gp.trace(Classifier().eval(), (torch.randn(2, 8),)))
    done = LastNorm()(program)
    assert done.fact(RefittedNorm) == RefittedNorm() and done.fact(RefittedNorm).notes() == ()


@pytest.mark.parametrize(
    ("norm", "batches", "reason"),
    [
        (lambda width: nn.LayerNorm(width, elementwise_affine=False), 16, "no norm with parameters of its own"),
        (Flat, 16, "no norm with parameters of its own"),
        (nn.LayerNorm, 1, "no calibration window is held out"),
    ],
)  # fmt: skip
def test_the_reason_why_nothing_changes(norm: Callable[[int], nn.Module], batches: int, reason: str) -> None:
    done = LastNorm()(cut(decoder(norm), batches))
    assert done.fact(RefittedNorm).left.startswith(reason)


def test_an_impossible_number_of_tokens() -> None:
    with pytest.raises(CalibrationError, match="most_tokens must be a positive number, got 0"):
        LastNorm(most_tokens=0).check()
