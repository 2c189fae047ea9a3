"""Freedoms that were invented once, and modules that once broke a cut: each is cut at random and compared."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphprune.execution.cases.fresh_inputs import fresh_inputs
from graphprune.execution.equivalence import verify_cut
from graphprune.frontends.modules import trace
from graphprune.passes.analysis.find_groups import analyze
from graphprune.passes.rewriting.rewrite import rewrite
from graphprune.planning.index_scores import rows_of
from graphprune.planning.plan import make


class Layers(nn.Module):
    """Two linear maps, a table, and one map behind `f` if it makes features."""

    def __init__(self, f: Callable[["Layers", Tensor], Tensor], features: int | None, slope: int) -> None:
        super().__init__()
        self.f, self.a, self.b, self.slope = f, nn.Linear(6, 8), nn.Linear(6, 8), nn.PReLU(slope)
        self.square, self.table, self.vector = nn.Linear(8, 8), nn.Embedding(9, 4), nn.Parameter(torch.zeros(8))
        self.latent, self.rows = nn.Parameter(torch.zeros(4, 8)), nn.Buffer(torch.arange(8))
        self.count, self.flags = nn.Buffer(torch.zeros(())), nn.Buffer(torch.ones(8, dtype=torch.int64))
        self.times = nn.Buffer(torch.tensor([2, 1, 3]))
        self.last = nn.Linear(features, 3) if features else nn.Identity()
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.f(self, x))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Case:
    """What happens between the maps, how many features come of it, and the groups to be found."""

    name: str
    f: Callable[[Layers, Tensor], Tensor]
    features: int | None
    free: str
    shape: tuple[int, ...] = (4, 6)
    slope: int = field(default=8)


def asked(s: Layers, x: Tensor, causal: bool = False) -> Tensor:
    latent = s.latent.expand(x.shape[0], -1, -1)
    return F.scaled_dot_product_attention(latent, s.a(x), s.b(x), is_causal=causal)


def counted(s: Layers, x: Tensor) -> Tensor:
    s.count.add_(1)
    return torch.mul(s.a(x), s.count)


def swapped(s: Layers, x: Tensor) -> Tensor:
    y: Tensor = s.a(x).view(x.shape[0], 5, 2, 4).transpose(1, 2).reshape(x.shape[0] * 2, -1, 4)
    return y.view(x.shape[0], 2, 5, 4).transpose(1, 2).reshape(x.shape[0], 5, -1)


CASES = [
    Case("pairs", lambda s, x: (s.a(x).sigmoid()[:, :, None] * s.a(x)[:, None]).sum(1), 8, "8!"),
    Case("sums of pairs", lambda s, x: (s.a(x)[:, :, None] + s.a(x)[:, None]).relu().sum(1), 8, "8!"),
    Case("columns and a bias", lambda s, x: s.square(s.square.weight * s.a(x)[:, :, None]).sum(1), 8, "8! 8"),
    Case("rows of a table", lambda s, x: (s.a(x)[..., None] + s.table(s.rows)).sum(1), 4, "8! 4"),
    Case("queries summed", lambda s, x: asked(s, x).sum(1), 8, "4! 8 8", (2, 5, 6)),
    Case("queries in order", lambda s, x: asked(s, x, causal=True).flatten(1), 32, "8 8", (2, 5, 6)),
    Case("slopes of channels", lambda s, x: s.slope(s.a(x).mT).sum(2), 8, "8", (2, 5, 6)),
    Case("slopes of positions", lambda s, x: s.slope(s.a(x)), 8, "8", (2, 5, 6), 5),
    Case("part of a stride", lambda s, x: s.a(x)[:, 1:7:2], 3, ""),
    Case("a slice of nothing", lambda s, x: torch.cat((s.a(x)[:, 10:], s.b(x)), 1), 8, "8 8"),
    Case("a vector as weight", lambda s, x: F.linear(s.a(x), s.vector)[:, None], None, ""),
    Case("the type of another", lambda s, x: s.a(x) * s.flags.type_as(s.a(x)), 8, "8"),
    Case("a computed and an inferred size", swapped, 8, "2 4", (2, 5, 6)),
    Case("one index left to squeeze", lambda s, x: s.a(x)[:, :, None].squeeze(), 8, "8"),
    Case("no index to squeeze", lambda s, x: s.a(x).squeeze(1), 8, "8"),
    Case("a buffer that counts", counted, 8, "8"),
    Case(
        "a size that depends on data", lambda s, x: s.a(torch.cat((x.repeat_interleave(s.times, 0), x))), 8, "8", (3, 6)
    ),
    Case(
        "dimensions of a number", lambda s, x: s.a(x) * s.a(x).sum().sum(-1).softmax(0).cumsum(0).max(0).values, 8, "8"
    ),
    Case("an even batch", lambda s, x: s.a(x).view(-1, 2, 8).flatten(1), 16, "8"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_cut_and_masked_agree(case: Case) -> None:
    torch.manual_seed(0)
    program = trace(Layers(case.f, case.features, case.slope).eval(), (torch.randn(case.shape),))
    found = analyze(program)
    program = program.with_facts(found)
    for seed in range(6):
        random = Random(seed)
        rows: dict[str, Any] = {}
        for group in (g for g in found.groups if g.exact):
            size = random.choice([1, random.randint(1, group.size)])
            rows[group.name] = tuple(
                tuple(sorted(random.sample(range(group.size), size))) for _ in range(rows_of(group, found))
            )
        plan = make(program, found, rows)
        small = rewrite(program, plan)
        verify_cut(program, small, plan.keep)
        assert len(analyze(small).groups) <= len(found.groups)
    assert " ".join(f"{g.size}{'' if g.exact else '!'}" for g in found.groups) == case.free


def test_write_back_of_several_outputs_a_channel() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=8), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
    program = trace(module, (torch.randn(2, 3, 8, 8),))
    found = analyze(program)
    rows = {g.name: tuple(((0,) if g.size == 2 else (1, 4, 6)) for _ in range(rows_of(g, found))) for g in found.groups}
    rewrite(program, make(program, found, rows)).write_back(module)
    wide: Any = module[1]
    assert (wide.in_channels, wide.out_channels, wide.groups) == (3, 3, 3)


def test_a_module_in_training_mode_is_captured_for_evaluation() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 3))
    module[2].eval()
    program = trace(module, (torch.randn(4, 6),))
    assert [part.training for part in module] == [True, True, False, True]
    found = analyze(program)
    program = program.with_facts(found)
    plan = make(program, found, {group.name: ((0, 3, 5),) for group in found.groups})
    small = rewrite(program, plan)
    verify_cut(program, small, plan.keep)
    small.write_back(module)
    assert [part.training for part in module] == [True, True, False, True]


class Silent(nn.Module):
    """Turns halves of a size that it cannot be told, among features that are silent below a level."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.level = nn.Linear(6, 4, bias=False), nn.Linear(4, 3), nn.Buffer(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x) - self.level)
        return self.b(torch.cat((-y[:, 2:], y[:, :2]), 1) + y * 3)  # type: ignore[no-any-return]


def test_write_back_is_not_content_with_inputs_on_which_nothing_happens() -> None:
    torch.manual_seed(0)
    module = Silent().eval()
    program = trace(module, (torch.randn(4, 6),))
    (x,), _ = fresh_inputs(program, seed=0)
    with torch.no_grad():
        module.level.copy_(module.a(x).max() + 1e-3)
    found = analyze(program)
    small = rewrite(program, make(program, found, {group.name: ((0,),) for group in found.groups}))
    small.write_back(module)
    x = 3 * torch.randn(50, 6)
    torch.testing.assert_close(module(x), small.module()(x))


class Hashed(nn.Module):
    """Samples are turned at random before they are compared, anew in every run."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        bucket = (x @ torch.randn(6, 2)).argmax(1, keepdim=True)
        return self.b(torch.relu(self.a(x))) * (1 + bucket)  # type: ignore[no-any-return]


def test_a_module_that_draws_random_numbers_is_proved_and_written_back() -> None:
    torch.manual_seed(0)
    module = Hashed().eval()
    program = trace(module, (torch.randn(9, 6),))
    found = analyze(program)
    plan = make(program, found, {group.name: ((0, 3, 5),) for group in found.groups})
    small = rewrite(program, plan)
    verify_cut(program, small, plan.keep)
    small.write_back(module)
    assert module.a.out_features == 3


@pytest.mark.parametrize(
    "spread",
    [
        lambda y: y.var(1, keepdim=True), lambda y: y.std(1, False, True),
        lambda y: y.std(1, correction=2, keepdim=True),
        lambda y: torch.var_mean(y, 1, keepdim=True)[0], lambda y: y.std(),
    ],
)  # fmt: skip
def test_of_what_has_a_variance_enough_stays(spread: Callable[[Tensor], Tensor]) -> None:
    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y + spread(y))  # type: ignore[no-any-return]

    program = trace(Spread(), (torch.randn(4, 6),))
    (group,) = analyze(program).groups
    plan = make(program, analyze(program), {group.name: (tuple(range(group.least)),)})
    (args, kwargs) = fresh_inputs(program, seed=0)
    assert group.least in (1, 2, 3) and torch.isfinite(rewrite(program, plan).module()(*args, **kwargs)).all()
