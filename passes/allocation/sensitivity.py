"""Widths at which one more index removed would do equally much harm everywhere, from trials of one group at a time.

Every knob alone is cut to some widths, by its scores, and the loss of the whole model measured on calibration data. The
harm as a function of what is removed is made convex, since a width on a bulge is worse than a mixture of its
neighbours; then the pieces between trials go in the order of harm per cost, so that all groups end at equal
marginal harm. A baseline of this project; the idea is that of sensitivity scans (Li et al., arXiv:1608.08710).

Where the program knows sensitivities that were measured before, nothing is tried: of groups that must keep equal
widths, the harms are added up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from graphprune.axes.groups import between
from graphprune.display.progress import progress
from graphprune.evaluation.masked_loss import Objective
from graphprune.passes.allocation import ALLOCATIONS
from graphprune.planning.budget import Budget, Knob
from graphprune.planning.interfaces import Allocation, Evidence
from graphprune.planning.ranking import Point, Pool, chosen, hull, shares_of
from graphprune.planning.sensitivity_table import Sensitivities


@dataclass(frozen=True)
class Sensitivity(Allocation):
    """Equal marginal harm, measured where a knob has lost each of the shares `trials`; all of it is the last."""

    trials: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    needs_calibration = True
    reads_sensitivities = True

    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The share that each group keeps, by name."""
        known = evidence.program.facts.get(Sensitivities)
        if known is None:
            objective = Objective.of(evidence.program)
            budget.require()
            curves = self._tried(budget, scores, objective)
        else:
            known.require(evidence.program.fingerprint(), [g.name for knob in budget.knobs for g in knob.groups])
            curves = [_to_the_end(_known(knob, known)) for knob in budget.knobs]
        pool = _pieces(budget, [hull(curve) for curve in curves])
        return budget.solve(lambda part: shares_of(budget, pool.gone(len(budget.knobs), part)))

    def _tried(self, budget: Budget, scores: Mapping[str, Tensor], objective: Objective) -> list[list[Point]]:
        """The curve of every knob."""
        curves = []
        with progress("trying groups", len(budget.knobs)) as step:
            for knob in budget.knobs:
                curves.append(self._curve(knob, scores, objective))
                step()
        return curves

    def _curve(self, knob: Knob, scores: Mapping[str, Tensor], objective: Objective) -> list[Point]:
        """Shares of the knob that are gone, and the loss; of a width that is tried twice the first."""
        points = [(0.0, objective.dense)]
        for share in self.trials:
            rows = chosen([knob], scores, dict.fromkeys([group.name for group in knob.groups], 1 - share))
            gone = 1 - len(next(iter(rows.values()))[0]) / knob.size if rows else 0.0
            if gone > points[-1][0]:
                points.append((gone, objective.loss(rows)))
        return _to_the_end(points)


def _known(knob: Knob, sensitivities: Sensitivities) -> list[Point]:
    """Shares of the knob that are gone, and the sum of what that does to each of its groups alone."""
    curves = [sensitivities.rise(group.name) for group in knob.groups]
    most = min(curve[-1][0] for curve in curves)
    places = sorted({gone for curve in curves for gone, _ in curve if gone <= most})
    return [(gone, sum(between(curve, gone) for curve in curves)) for gone in places]


def _to_the_end(points: list[Point]) -> list[Point]:
    """The same up to where all is gone; nobody goes that far."""
    last, loss = points[-1]
    return points if last == 1 else [*points, (1.0, loss + abs(loss - points[0][1]))]


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
