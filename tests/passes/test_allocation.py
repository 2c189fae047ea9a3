"""Allocations against what can be counted by hand on a small network."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from graphprune.budget import Budget, Knob
from graphprune.calibration import Calibration
from graphprune.dependencies import Dependencies
from graphprune.frontends.modules import trace
from graphprune.methods import Evidence
from graphprune.passes.allocation import ALLOCATIONS
from graphprune.passes.analysis import analyze
from graphprune.program import Program
from graphprune.ranking import Pool, ranked


class Net(nn.Module):
    """Two feed-forward layers of different widths, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(4, n), "down": nn.Linear(n, 4)}) for n in (10, 6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer["down"](torch.relu(layer["up"](x)))  # type: ignore[index]
        return x


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    x = torch.randn(32, 4)
    traced = trace(Net(), (x,))
    return traced.with_facts(analyze(traced), Calibration([[x]], "given", 1, 0, 0))


def shares(
    program: Program, name: str, target: int, scores: dict[str, Tensor] | None = None
) -> tuple[Budget, dict[str, float]]:
    found = program.fact(Dependencies)
    budget = Budget(found, [Knob.of([group]) for group in found.groups], target, program.parameters)
    given = scores or {g.name: torch.arange(1.0, g.size + 1)[None] for g in found.groups}
    evidence = Evidence(program, found, None)
    return budget, dict(ALLOCATIONS[name].shares(budget, given, evidence))


def test_ranks_are_means_over_rows() -> None:
    assert ranked(torch.tensor([[3.0, 1.0], [1.0, 2.0]])).tolist() == [1.0, 2.5]


def test_what_is_worth_least_goes_first_and_the_border_in_part() -> None:
    one = torch.ones(3, dtype=torch.float64)
    pool = Pool(torch.tensor([0, 1, 0]), one / 2, torch.tensor([1.0, 2.0, 1.0]).double(), torch.tensor([3.0, 1.0, 2.0]))
    assert pool.sorted().gone(2, 0.25).tolist() == [0.0, 0.25]
    assert pool.sorted().gone(2, 0.75).tolist() == [0.5, 0.5]
    assert pool.sorted().gone(2, 1.0).tolist() == [1.0, 0.5]


def test_a_global_threshold_cuts_where_standardised_scores_are_low(program: Program) -> None:
    wide, narrow = program.fact(Dependencies).groups
    # One outlier makes the rest of the wide group low in deviations; in the narrow one half is low, half high.
    scores = {wide.name: torch.tensor([[0.0] * 9 + [100.0]]), narrow.name: torch.tensor([[0.0, 0, 0, 6, 6, 6]])}
    z = {name: (value - value.mean()) / value.std(correction=0) for name, value in scores.items()}
    assert wide.cost.parameters == narrow.cost.parameters == 9
    _, found = shares(program, "global", 3 * 9, scores)
    assert z[narrow.name].min() < z[wide.name].min()
    assert found[narrow.name] == pytest.approx(0.5) and found[wide.name] == pytest.approx(1)
    _, found = shares(program, "global", 8 * 9, scores)
    assert found[narrow.name] == pytest.approx(0.5) and found[wide.name] == pytest.approx(0.5)


def test_variants_of_the_threshold_give_the_same_share_of_every_pool(program: Program) -> None:
    wide, narrow = program.fact(Dependencies).groups
    assert wide.kind == narrow.kind
    whole = shares(program, "global", 40)[1]
    assert shares(program, "global-layers", 40)[1] == pytest.approx(whole)
    by_layer = shares(program, "global-kinds", 40)[1]
    assert by_layer[wide.name] == pytest.approx(by_layer[narrow.name])


@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.parametrize("target", [9, 30, 100])
def test_the_budget_is_met_whatever_the_scores(
    program: Program, name: str, target: int, tiny: Callable[..., nn.Module]
) -> None:
    for value in (0.0, 1.0):
        found = program.fact(Dependencies)
        scores = {g.name: torch.full((1, g.size), value) for g in found.groups}
        budget, got = shares(program, name, target, scores)
        assert budget.removed(budget.widths(got)) == pytest.approx(target, abs=0.5)
