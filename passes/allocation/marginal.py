"""Equal marginal loss, for scores that estimate the growth of the loss in one unit for all groups."""

from collections.abc import Mapping

from torch import Tensor, stack

from graphprune.passes.allocation import ALLOCATIONS
from graphprune.planning.budget import Budget, Knob
from graphprune.planning.interfaces import Allocation, Evidence
from graphprune.planning.ranking import Pool, ranked, shares_of


class Marginal(Allocation):
    """Removal of the indices with the least growth of the loss per cost, in the whole model."""

    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The retained share of each group, by name."""

        def loss_per_cost(knob: Knob) -> Tensor:
            growth = stack([ranked(scores[group.name]) * len(scores[group.name]) for group in knob.groups]).sum(0)
            return growth / max(budget.cost_per_index(knob), 1e-12)

        pool = Pool.of(budget, range(len(budget.knobs)), loss_per_cost)
        return budget.solve(lambda part: shares_of(budget, pool.removed_shares(len(budget.knobs), part)))


ALLOCATIONS.register("marginal")(Marginal())
