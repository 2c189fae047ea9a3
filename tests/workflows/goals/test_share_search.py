"""The search for a share: it ends next to the goal, on the side that meets it, in few trials."""

from collections.abc import Callable
from math import inf

import pytest

from graphprune.workflows.goals.share_search import NARROW, PlanCurve, ShareSearch

GRID = [i / 40 for i in range(37)]  # shares up to 0.9


def curve(power: float) -> PlanCurve:
    return PlanCurve(GRID, [share**power for share in GRID])


@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize("goal", [0.03, 0.11, 0.47, 0.83])
@pytest.mark.parametrize("actual", [1.0, 2.0, 4.0])
def test_it_meets_the_goal_narrowly(goal: float, actual: float, below: bool) -> None:
    search = ShareSearch(curve(2), lambda share: (share / goal) ** actual, below)
    share = search.run()
    assert share is not None and len(search.tried) <= 9
    assert share <= goal if below else share >= goal
    assert abs(share - goal) <= NARROW or abs((share / goal) ** actual - 1) <= 0.07


def test_a_predicted_curve_of_the_right_shape_needs_three_trials() -> None:
    search = ShareSearch(curve(2), lambda share: (share / 0.4) ** 2, below=True)
    search.run()
    assert len(search.tried) <= 3


@pytest.mark.parametrize(
    ("progress", "below", "share"),
    [
        (lambda share: inf, True, None),  # no cut meets it
        (lambda share: 0.5, True, 0.9),  # every cut meets it: the greatest share
        (lambda share: 0.5, False, None),  # no cut is fast enough
        (lambda share: inf, False, 0.0),  # every cut is
    ],
)
def test_goals_that_nothing_or_everything_meets(
    progress: Callable[[float], float], below: bool, share: float | None
) -> None:
    best = ShareSearch(curve(1), progress, below).run()
    assert best is None if share is None else best == pytest.approx(share, abs=2 * NARROW)


def test_known_trials_are_not_repeated() -> None:
    tried = list[float]()

    def progress(share: float) -> float:
        tried.append(share)
        return share / 0.3

    first = ShareSearch(curve(1), progress, below=True)
    best = first.run()
    count = len(tried)
    assert ShareSearch(curve(1), progress, below=True, tried=dict(first.tried)).run() == best and len(tried) == count
