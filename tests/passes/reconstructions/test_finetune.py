"""A few steps of training of what has one dimension."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import CalibrationError
from graphprune.evaluation.masked_loss import Objective
from graphprune.execution.output_comparison import Verification
from graphprune.ir.program import Program, Rewritten
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.reconstructions.finetune import Tune
from graphprune.passes.reconstructions.refit import Refit
from graphprune.passes.verification.verify import Verify
from graphprune.planning.facts import Refits


class Normed(nn.Module):
    """A residual branch under a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(6), nn.Linear(6, 16), nn.Linear(16, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(self.norm(x))))  # type: ignore[no-any-return]


def cut(module: nn.Module) -> Program:
    steps = gp.Analyze(), Calibrate(batches=calls()), gp.Score("magnitude"), gp.Allocate(ratio=0.5), gp.Select()
    return gp.Pipeline((*steps, gp.Rewrite()))(gp.trace(module, calls()[0][0]))


def calls() -> Any:
    generator = torch.Generator().manual_seed(1)
    return tuple(((torch.randn(16, 6, generator=generator),), {}) for _ in range(16))


def distance(program: Program, module: nn.Module) -> float:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return float((program.module()(x) - module(x)).square().mean())


@pytest.mark.parametrize("refit", ["none", "affine"])
def test_tuning_brings_outputs_nearer_to_the_dense_model(refit: str) -> None:
    torch.manual_seed(0)
    module = Normed()
    refitted = Refit(refit)(cut(module))
    tuned = Verify()(Tune(steps=200, rate=0.01)(refitted))
    assert distance(tuned, module) < (0.9 if refit == "none" else 0.99) * distance(refitted, module)
    trained = {"norm.weight", "norm.bias", "a.bias"} | ({"b.bias"} if refit == "affine" else set())
    assert set(tuned.fact(Refits).tuned) == trained
    assert all(torch.equal(tuned.weights[n], refitted.weights[n]) for n in ("a.weight", "b.weight"))
    assert tuned.fact(Verification).max_error <= 1e-4
    x = torch.randn(5, 6)
    tuned.write_back(module)
    torch.testing.assert_close(module(x), tuned.module()(x))


def test_updates_of_a_low_rank_are_merged() -> None:
    torch.manual_seed(0)
    module = Normed()
    refitted = Refit("least-squares")(cut(module))
    tuned = Verify()(Tune(steps=200, rate=0.01, rank=2)(refitted))
    assert distance(tuned, module) < 0.8 * distance(Tune(steps=200, rate=0.01)(refitted), module)
    for name in ("a.weight", "b.weight"):
        change = (tuned.weights[name] - refitted.weights[name]).double()
        assert change.norm() > 0 and torch.linalg.svdvals(change)[2:].max() < 1e-5 * change.norm()
    assert {"a.weight", "b.weight", "norm.weight"} <= set(tuned.fact(Refits).tuned)
    x = torch.randn(5, 6)
    tuned.write_back(module)
    torch.testing.assert_close(module(x), tuned.module()(x))
    with pytest.raises(CalibrationError, match="aim must be labels or dense, got 'nothing'"):
        Tune(aim="nothing")(refitted)


def test_a_start_that_is_best_stays_and_a_loss_may_be_given() -> None:
    torch.manual_seed(0)
    small = cut(Normed())
    tuned = Tune(steps=20, rate=1e3)(small)
    assert all(torch.equal(tuned.weights[n], small.weights[n]) for n in tuned.fact(Refits).tuned)
    mine = Tune(steps=20, rate=0.1, loss=lambda output, batch: (output - 3).square().mean())(small)
    x = torch.randn(50, 6)
    before, after = ((program.module()(x) - 3).square().mean() for program in (small, mine))
    assert after < before - 0.3
    with pytest.raises(CalibrationError, match="not finite"):
        Tune(steps=2, loss=lambda output, batch: output.sum() * float("nan"))(small)


def test_a_language_model_learns_the_next_token(
    tiny: Callable[..., nn.Module], inputs: Callable[[str], dict[str, Any]]
) -> None:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 12, (16, 4, 9), generator=generator)  # few of the tokens that there are
    named = inputs("llama")
    batches: Any = tuple(((), {**named, "input_ids": part}) for part in ids)
    steps = gp.Analyze(), Calibrate(batches=batches), gp.Score("magnitude"), gp.Allocate(ratio=0.4), gp.Select()
    small = gp.Pipeline((*steps, gp.Rewrite()))(gp.trace(tiny("llama"), (), named))
    tuned = Tune(steps=40, rate=0.01)(small)
    judge = Objective.of(small.fact(Rewritten).original)
    assert judge.loss_of(tuned) < judge.loss_of(small) - 0.05
    wanted, found = (program.module()(**batches[0][1]) for program in (small.fact(Rewritten).original, small))
    near = Tune(steps=40, rate=0.01, rank=2, aim="dense")(small).module()(**batches[0][1])

    def apart(logits: Tensor) -> float:
        p, q = (value.log_softmax(-1) for value in (wanted["logits"], logits))
        return (p.exp() * (p - q)).sum(-1).mean().item()

    assert apart(near["logits"]) < 0.7 * apart(found["logits"])
