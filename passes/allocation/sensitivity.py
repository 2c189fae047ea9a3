"""Widths at which one more index removed would do equally much harm everywhere, from trials of one group at a time.

Every knob alone is cut to some widths, by its scores, and the loss of the whole model measured on calibration data. The
harm as a function of what is removed is made convex, since a width on a bulge is worse than a mixture of its
neighbours; then the pieces between trials go in the order of harm per cost, so that all groups end at equal
marginal harm. A baseline of this project; the idea is that of sensitivity scans (Li et al., arXiv:1608.08710).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from graphprune.budget import Budget, Knob
from graphprune.methods import Allocation, Evidence
from graphprune.objective import Objective
from graphprune.passes.allocation import ALLOCATIONS
from graphprune.progress import progress
from graphprune.ranking import Point, Pool, chosen, hull, shares_of


@dataclass(frozen=True)
class Sensitivity(Allocation):
    """Equal marginal harm, measured where a knob has lost each of the shares `trials`; all of it is the last."""

    trials: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    needs_calibration = True

    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The share that each group keeps, by name."""
        objective = Objective.of(evidence.program)
        budget.require()
        with progress("trying groups", len(budget.knobs)) as step:
            curves = []
            for knob in budget.knobs:
                curves.append(hull(self._curve(knob, scores, objective)))
                step()
        pool = _pieces(budget, curves)
        return budget.solve(lambda part: shares_of(budget, pool.gone(len(budget.knobs), part)))

    def _curve(self, knob: Knob, scores: Mapping[str, Tensor], objective: Objective) -> list[Point]:
        """Shares of the knob that are gone, and the loss; of a width that is tried twice the first."""
        points = [(0.0, objective.dense)]
        for share in self.trials:
            rows = chosen([knob], scores, dict.fromkeys([group.name for group in knob.groups], 1 - share))
            gone = 1 - len(next(iter(rows.values()))[0]) / knob.size if rows else 0.0
            if gone > points[-1][0]:
                points.append((gone, objective.loss(rows)))
        last, loss = points[-1]
        return points if last == 1 else [*points, (1.0, loss + abs(loss - points[0][1]))]  # nobody goes that far


def _pieces(budget: Budget, curves: Sequence[Sequence[Point]]) -> Pool:
    """The stretches between the points of every knob's curve; they are worth the harm per cost of their removal."""
    rows = [
        (at, b[0] - a[0], (b[0] - a[0]) * whole, (b[1] - a[1]) / ((b[0] - a[0]) * whole))
        for at, (knob, curve) in enumerate(zip(budget.knobs, curves, strict=True))
        for whole in [max(budget.price(knob) * knob.size, 1e-12)] for a, b in pairwise(curve)
    ]  # fmt: skip
    where, share, cost, worth = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return Pool(where.long(), share, cost, worth).sorted()


ALLOCATIONS.register("sensitivity")(Sensitivity())
