"""LAMP (arXiv:2010.07611): magnitudes that can be compared among layers.

With the squared norm ``m_j`` of all coupled weights of an index, the score is ``m_j`` divided by the sum of all ``m_k``
that are at least as large. The paper scores single weights; this is its form for groups. The last index of a group has
the score 1, so that one threshold for all groups (allocation ``pooled``) empties none.
"""

import torch
from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import at_places
from graphprune.planning.interfaces import Evidence, ScoreMethod


class Lamp(ScoreMethod):
    """``m_j / sum of m_k over m_k >= m_j``."""

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        weights = evidence.program.weights
        squares = torch.stack(at_places(group, evidence, lambda name: weights[name].double().square())).sum(0)
        ascending, order = squares.sort(dim=1, stable=True)
        remaining = ascending.flip(1).cumsum(1).flip(1).clamp(min=torch.finfo(torch.float64).tiny)
        return torch.zeros_like(squares).scatter(1, order, ascending / remaining)


SCORES.register("lamp")(Lamp())
