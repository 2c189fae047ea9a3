"""REAP (arXiv:2510.13999): what an expert adds to the result of the tokens that are routed to it."""

from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import OfExperts, routed_sums
from graphprune.planning.interfaces import Evidence


class Reap(OfExperts):
    """Mean over the tokens of an expert of the router's weight times the norm of its output."""

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size); 0 for one that no token reaches."""
        norms = routed_sums(group, evidence, lambda sums: sums.norms)
        return norms / routed_sums(group, evidence, lambda sums: sums.tokens).clamp(min=1)


SCORES.register("reap")(Reap())
