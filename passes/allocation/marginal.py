"""Equal marginal loss, for scores that estimate the growth of the loss in one unit for all groups."""

from collections.abc import Mapping

from torch import Tensor

from graphprune.passes.allocation import ALLOCATIONS
from graphprune.planning.budget import Budget
from graphprune.planning.interfaces import Allocation, Evidence
from graphprune.planning.ranking import growth_shares


class Marginal(Allocation):
    """Removal of the indices with the least growth of the loss per cost, in the whole model."""

    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The retained share of each group, by name."""
        return growth_shares(budget, scores)


ALLOCATIONS.register("marginal")(Marginal())
