"""Routing frequency: the number of calibration tokens that reach an expert."""

from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import OfExperts, routed_sums
from graphprune.planning.interfaces import Evidence


class RoutingFrequency(OfExperts):
    """Number of tokens that the router sends to an expert."""

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        return routed_sums(group, evidence, lambda sums: sums.tokens)


SCORES.register("routing-frequency")(RoutingFrequency())
