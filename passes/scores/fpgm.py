"""FPGM (arXiv:1811.00250): filters near the geometric median of their layer, which the others can replace.

The score of a filter is the sum of its distances to all filters of the layer (equation 5): the filter with the lowest
sum is nearest to the geometric median. Of layers that produce the same group, the sums are added up.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from graphprune.axes.groups import Group, Place
from graphprune.axes.rule import Consumer
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import chooser, positions, rows_of
from graphprune.planning.interfaces import Evidence, ScoreMethod


class GeometricMedian(ScoreMethod):
    """``sum over k of ||F_j - F_k||``, where F_j are all weights that produce index j."""

    def applies(self, group: Group, consumers: Sequence[Consumer]) -> bool:
        """Whether layers produce the group."""
        return bool(_producing(group))

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        total = torch.zeros(rows_of(group, evidence.dependencies), group.size, dtype=torch.float64)
        for place in _producing(group):
            vectors = filters(place, group, evidence)
            total += torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist").sum(2)
        return total


def _producing(group: Group) -> list[Place]:
    return [place for place in group.places if "produced" in place.role]


def filters(place: Place, group: Group, evidence: Evidence) -> Tensor:
    """All weights of every index in a parameter, shape (rows or 1, group.size, weights)."""
    weight = evidence.program.weights[place.parameter].double().movedim(place.dim, 0)
    dim = chooser(place, group, evidence.dependencies)
    if dim is None:
        return weight.flatten(1)[positions(place.axis, group, evidence.dependencies)].flatten(2)
    columns = positions(place.axis, group, evidence.dependencies)[0]
    by_row = weight.movedim(1 + dim - (dim > place.dim), 0)
    return by_row[:, columns].flatten(2)


SCORES.register("fpgm")(GeometricMedian())
