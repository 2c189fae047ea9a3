"""The search over calibration data and metrics finds what trying everything finds."""

import sys
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import PackageError, PlanError
from graphprune.evaluation.masked_loss import Objective
from graphprune.ir.program import Program
from graphprune.passes.allocation.search import TAYLOR, Search
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.calibration.gradients import Gradients
from graphprune.pipeline import Pipeline
from graphprune.planning.facts import Scores
from graphprune.planning.plan import Plan
from graphprune.statistics.collector import Calibration


def energy(output: Tensor, batch: int) -> Tensor:
    return (output - batch).square().mean()


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 2))
    calls: Any = tuple(((torch.randn(6, 4),), {}) for _ in range(9))
    return Pipeline((gp.Analyze(), Calibrate(batches=calls, moments="none")))(gp.trace(model, calls[0][0]))


def planned(program: Program, *scoring: gp.Pass) -> Program:
    steps = *scoring, gp.Allocate(sparsity=0.5), gp.Select()
    return Pipeline(steps, given=tuple(program.facts))(program)


def test_the_best_metric_and_data_are_found(program: Program) -> None:
    judge, calibration = Objective.of(program), program.fact(Calibration)
    seen = [i for i in range(9) if not calibration.held_out(i)]
    losses = {}
    for metric, kept in product(TAYLOR, ([0, 1], [0], [1])):
        numbers = [n for at, n in enumerate(seen) if at // 4 in kept]
        part = Calibration([calibration.batches[n] for n in numbers], "given", len(numbers), 0, 0)
        loss = lambda out, i, numbers=numbers: energy(out, numbers[i])  # noqa: E731
        made = planned(program.with_facts(part), Gradients(loss), gp.Score(metric))
        losses[metric, tuple(kept)] = judge.loss(made.fact(Plan).groups)
    options: dict[str, Any] = {"sparsity": 0.5, "parts": 2, "loss": energy}
    found = planned(program, Search(trials=60, **options))
    assert judge.loss(found.fact(Plan).groups) == min(losses.values()) < losses["taylor", (0, 1)]
    assert found.fact(Calibration) is calibration
    first = planned(program, Search(trials=1, **options))
    assert first.fact(Scores).method == "taylor"
    assert judge.loss(first.fact(Plan).groups) == losses["taylor", (0, 1)]


def test_what_is_missing_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Search().needs
    with pytest.raises(PlanError, match="at least one trial"):
        Pipeline((Search(trials=0),), given)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(PackageError, match=r"optuna is not installed: pip install 'graphprune\[search\]'"):
        Pipeline((Search(),), given)
