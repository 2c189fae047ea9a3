"""Equal marginal loss, from trials that cut one group at a time.

Every knob alone is cut to some widths, by its scores, and the loss of the whole model is measured on calibration data.
The curve of the loss over the removed share is replaced by its lower convex hull, since a width above the hull is worse
than a mixture of its neighbors. The pieces between trials are removed in the order of loss per cost, so that all groups
end at equal marginal loss. A baseline of this project, after sensitivity scans (Li et al., arXiv:1608.08710).

Where the program has measured sensitivities, there are no trials: the losses of groups of equal widths are added up.
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
from graphprune.planning.ranking import Point, Pool, chosen, hull, pooled_shares
from graphprune.planning.sensitivity_table import Sensitivities


@dataclass(frozen=True)
class Sensitivity(Allocation):
    """Equal marginal loss, measured after the removal of each of the shares `trials` of a knob."""

    trials: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    needs_calibration = True
    reads_sensitivities = True

    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The retained share of each group, by name."""
        known = evidence.program.facts.get(Sensitivities)
        if known is None:
            objective = Objective.of(evidence.program)
            budget.require()
            curves = self._measured(budget, scores, objective)
        else:
            known.require(evidence.program.fingerprint(), [g.name for knob in budget.knobs for g in knob.groups])
            curves = [_completed(_known(knob, known)) for knob in budget.knobs]
        pool = _pieces(budget, [hull(curve) for curve in curves])
        return pooled_shares(budget, pool)

    def _measured(self, budget: Budget, scores: Mapping[str, Tensor], objective: Objective) -> list[list[Point]]:
        """The curve of every knob."""
        curves = []
        with progress("trying groups", len(budget.knobs)) as step:
            for knob in budget.knobs:
                curves.append(self._curve(knob, scores, objective))
                step()
        return curves

    def _curve(self, knob: Knob, scores: Mapping[str, Tensor], objective: Objective) -> list[Point]:
        """Removed shares of the knob and the loss at each; of several shares of one width, the first."""
        points = [(0.0, objective.dense)]
        for share in self.trials:
            rows = chosen([knob], scores, dict.fromkeys([group.name for group in knob.groups], 1 - share))
            removed = 1 - len(next(iter(rows.values()))[0]) / knob.size if rows else 0.0
            if removed > points[-1][0]:
                points.append((removed, objective.loss(rows)))
        return _completed(points)


def _known(knob: Knob, sensitivities: Sensitivities) -> list[Point]:
    """Removed shares of the knob, and the sums of the rises of the loss for each of its groups alone."""
    curves = [sensitivities.rise(group.name) for group in knob.groups]
    most = min(curve[-1][0] for curve in curves)
    shares = sorted({share for curve in curves for share, _ in curve if share <= most})
    return [(share, sum(between(curve, share) for curve in curves)) for share in shares]


def _completed(points: list[Point]) -> list[Point]:
    """The curve up to the share 1, which no plan removes."""
    last, loss = points[-1]
    return points if last == 1 else [*points, (1.0, loss + abs(loss - points[0][1]))]


def _pieces(budget: Budget, curves: Sequence[Sequence[Point]]) -> Pool:
    """The pieces between the points of every knob's curve; their scores are the rise of the loss per cost."""
    rows = [
        (at, b[0] - a[0], (b[0] - a[0]) * whole, (b[1] - a[1]) / ((b[0] - a[0]) * whole))
        for at, (knob, curve) in enumerate(zip(budget.knobs, curves, strict=True))
        for whole in [max(budget.cost_per_index(knob) * knob.size, 1e-12)] for a, b in pairwise(curve)
    ]  # fmt: skip
    index, share, cost, score = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return Pool(index.long(), share, cost, score).sorted()


ALLOCATIONS.register("sensitivity")(Sensitivity())
