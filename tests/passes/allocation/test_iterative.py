"""Several shots: what is chosen follows the model as it is after the last cut."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import PlanError
from graphprune.execution.output_comparison import Verification
from graphprune.ir.program import Program
from graphprune.passes.allocation.iterative import Iterative
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.reconstructions.refit import Refit
from graphprune.pipeline import Pipeline
from graphprune.planning.facts import Scores
from graphprune.planning.plan import Plan
from tests.recipes import pipeline_of

STEPS = gp.Score("fasp"), gp.Allocate(ratio=0.5), gp.Select()


def calls(*shape: int) -> Any:
    generator = torch.Generator().manual_seed(3)
    return tuple(((torch.randn(*shape, generator=generator),), {}) for _ in range(9))


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 2))
    return Pipeline((gp.Analyze(), Calibrate(batches=calls(6, 4))))(gp.trace(model, calls(6, 4)[0][0]))


def test_two_shots_are_cut_refit_look_cut(program: Program) -> None:
    """By hand: a quarter goes, what is left is refitted and judged by itself, and loses a third."""
    got = Iterative(2, (Calibrate(batches=calls(6, 4)), *STEPS), (Refit(),))(program)
    steps = gp.Score("fasp"), gp.Allocate(ratio=0.25), gp.Select(), gp.Rewrite(), Refit()
    quarter = Pipeline(steps, tuple(program.facts))(program)
    x = torch.cat([args[0] for args, _ in calls(6, 4)]).double()
    weights = quarter.weights
    for i, (name, width) in enumerate({"0.weight:0": 6, "2.weight:0": 5}.items()):
        hidden = torch.relu(x @ weights["0.weight"].double().T + weights["0.bias"].double())
        if i:
            hidden = torch.relu(hidden @ weights["2.weight"].double().T + weights["2.bias"].double())
        score = weights[f"{2 * i + 2}.weight"].double().abs().sum(0) * hidden.norm(dim=0)
        left = quarter.fact(Plan).groups[name][0]
        best = sorted(left[j] for j in score.argsort(descending=True)[:width].tolist())
        assert list(got.fact(Plan).groups[name][0]) == best


def test_one_shot_is_none(program: Program) -> None:
    plain = Pipeline(STEPS, tuple(program.facts))(program)
    assert Iterative(1, STEPS)(program).fact(Plan).digest == plain.fact(Plan).digest


def test_shares_fall_linearly_and_what_is_gone_stays_gone(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    widths, kept = list[int](), list[set[int]]()
    run = gp.Select.run

    def watched(self: gp.Select, given: Program) -> Program:
        made = run(self, given)
        rows = made.fact(Plan).groups["0.weight:0"][0]
        widths.append(len(rows))
        kept.append(set(rows))
        return made

    monkeypatch.setattr(gp.Select, "run", watched)
    made = Iterative(3, (Calibrate(batches=calls(6, 4)), *STEPS), (Refit(),))(program)
    assert widths == [10, 8, 6] and kept[0] > kept[1] > kept[2]
    assert made.fact(Scores).by_group["0.weight:0"].shape == (1, 12)


@pytest.mark.parametrize("name", [pytest.param("transact", marks=pytest.mark.slow), "flap"])
def test_recipes_take_several_shots(
    name: str, tiny: Callable[..., nn.Module], inputs: Callable[[str], dict[str, Any]]
) -> None:
    """Heads, groups with rows of their own, biases: all that a model has."""
    program = gp.trace(tiny("llama", use_cache=False), (), inputs("llama"))
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 60, (4, 7), generator=generator) for _ in range(9)]
    batches: Any = tuple(((), {**inputs("llama"), "input_ids": each}) for each in ids)
    small = pipeline_of(name, sparsity=0.3, shots=2, batches=batches)(program)
    assert small.count() == pytest.approx(0.7 * program.count(), rel=0.03)
    assert small.fact(Verification).max_error <= 1e-4


def test_where_there_are_no_shots_is_said() -> None:
    for name in ("sleb", "adapruner", "mpifa"):
        with pytest.raises(PlanError, match=f"recipe {name} has a single round"):
            pipeline_of(name, sparsity=0.3, shots=2)
    with pytest.raises(PlanError, match="positive whole number"):
        Pipeline((gp.Analyze(), Iterative(0, STEPS)))
    with pytest.raises(PlanError, match="steps that end with allocate and select"):
        Pipeline((gp.Analyze(), Iterative(2, (*STEPS, gp.Rewrite()))))
