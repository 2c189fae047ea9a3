"""Wanda-sp, the structured form of Wanda that FLAP (arXiv:2312.11983) compares with; from its authors' code."""

from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.axes.rule import Consumer
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import Outermost, at_consumers
from graphprune.planning.interfaces import Evidence


class WandaSp(Outermost):
    """Mean of ``|W_ij| ||x_j||`` over a column, averaged over the columns of a head."""

    moments = "diagonal"
    stacks = True

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""

        def columns(consumer: Consumer) -> Tensor:
            return evidence.matrix(consumer).abs().mean(0) * evidence.moments(consumer).squares.sqrt()

        return at_consumers(group, evidence, columns, mean=True)


SCORES.register("wanda-sp")(WandaSp())
