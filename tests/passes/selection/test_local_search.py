"""Swaps against brute force: the errors that they count on, and what they end with."""

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.axes.groups import Dependencies
from graphprune.errors import PipelineError
from graphprune.ir.program import Program
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.selection.local_search import LinearLayer, LocalSearch, exchanged
from graphprune.pipeline import Pipeline
from graphprune.planning.interfaces import Evidence
from graphprune.planning.plan import Plan
from graphprune.statistics.moments import Statistics


def problem(seed: int, size: int = 8, count: int = 1) -> tuple[LinearLayer, Tensor]:
    """A map of `size` indices with `count` columns each, and its inputs, shape (200, size * count)."""
    generator = torch.Generator().manual_seed(seed)
    n = size * count
    mixing = torch.randn(n, n, generator=generator).double()
    x = torch.randn(200, n, generator=generator).double() @ mixing
    weight = torch.randn(5, n, generator=generator).double()
    return LinearLayer(weight, x.T @ x, torch.arange(n).view(1, size, count)), x


def mask(kept: tuple[int, ...], size: int = 8) -> Tensor:
    return torch.zeros(1, size, dtype=torch.bool).scatter(1, torch.tensor([kept]), True)


def error(one: LinearLayer, x: Tensor, kept: tuple[int, ...]) -> float:
    """What is left after least squares."""
    columns = one.columns[0, list(kept)].flatten()
    wanted = x @ one.weight.T
    return float((wanted - x[:, columns] @ torch.linalg.lstsq(x[:, columns], wanted).solution).square().sum())


@pytest.mark.parametrize("count", [1, 2])
def test_gains_and_losses_are_differences_of_errors(count: int) -> None:
    one, x = problem(0, 8, count)
    kept = (0, 2, 3, 6)
    now = error(one, x, kept)
    assert one.error(mask(kept)) == pytest.approx(now, rel=1e-9)
    gains, losses = one.gains(mask(kept))[0], one.losses(mask(kept))[0]
    for j in range(8):
        other = tuple(sorted({*kept} ^ {j}))
        expected = error(one, x, other) - now
        assert float(losses[j] if j in kept else -gains[j]) == pytest.approx(expected, rel=1e-7)


def test_swaps_end_near_the_best_of_all_subsets() -> None:
    ranks = list[int]()
    for seed in range(20):
        one, x = problem(seed)
        errors = {kept: error(one, x, kept) for kept in combinations(range(8), 4)}
        first = (0, 1, 2, 3)
        (found,) = exchanged([one], (first,), 16)
        assert len(found) == 4 and errors[found] <= errors[first]
        ranks.append(sum(other < errors[found] * (1 - 1e-9) for other in errors.values()))
    assert max(ranks) <= 12 and ranks.count(0) >= 7  # of 70 subsets each


def test_rows_of_their_own_and_rows_together() -> None:
    one, _ = problem(1, 12)
    several = LinearLayer(one.weight, one.gram, torch.arange(12).view(2, 6, 1))
    apart = exchanged([several], ((0, 1, 2), (0, 1, 2)), 16)
    (together,) = exchanged([several], ((0, 1, 2),), 16)
    marks = [torch.zeros(2, 6, dtype=torch.bool) for _ in range(3)]
    for mark, rows in zip(marks, (((0, 1, 2),) * 2, apart, (together,) * 2), strict=True):
        mark.scatter_(1, torch.tensor(rows), True)
    start, free, tied = (several.error(mark) for mark in marks)
    assert free < start and tied <= start


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 2))
    calls: Any = tuple(((torch.randn(6, 4),), {}) for _ in range(9))
    return Pipeline((gp.Analyze(), Calibrate(batches=calls, moments="full")))(gp.trace(model, calls[0][0]))


def test_a_plan_gets_better_at_the_same_widths(program: Program) -> None:
    steps = gp.Score("random"), gp.Allocate(ratio=0.5), gp.Select()
    planned = Pipeline(steps, tuple(program.facts))(program)
    swapped = LocalSearch()(planned)
    found = program.fact(Dependencies)
    evidence = Evidence(program, found, program.fact(Statistics))
    assert swapped.fact(Plan).widths == planned.fact(Plan).widths
    for group in found.groups:
        one = LinearLayer.of(found.consumers_of(group)[0], group, evidence)
        before, after = (one.error(mask(p.fact(Plan).groups[group.name][0], group.size)) for p in (planned, swapped))
        assert after < before


def test_diagonal_moments_do_not_do(program: Program) -> None:
    calibration = Calibrate(batches=tuple(((torch.randn(6, 4),), {}) for _ in range(2)))(program)
    steps = gp.Score("magnitude"), gp.Allocate(ratio=0.5), gp.Select(), LocalSearch()
    with pytest.raises(PipelineError, match=r"local-search, needs FullMoments, .* calibrate\{moments=full\}"):
        Pipeline(steps, tuple(calibration.facts))
