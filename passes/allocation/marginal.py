"""Equal marginal loss: for scores that say by how much the loss grows, in one unit for all groups."""

from collections.abc import Mapping

from torch import Tensor, stack

from graphprune.passes.allocation import ALLOCATIONS
from graphprune.planning.budget import Budget, Knob
from graphprune.planning.interfaces import Allocation, Evidence
from graphprune.planning.ranking import Pool, ranked, shares_of


class Marginal(Allocation):
    """The indices go that cost least loss for what they save, wherever they are."""

    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The share that each group keeps, by name."""

        def worth(knob: Knob) -> Tensor:
            lost = stack([ranked(scores[group.name]) * len(scores[group.name]) for group in knob.groups]).sum(0)
            return lost / max(budget.price(knob), 1e-12)

        pool = Pool.of(budget, range(len(budget.knobs)), worth)
        return budget.solve(lambda part: shares_of(budget, pool.gone(len(budget.knobs), part)))


ALLOCATIONS.register("marginal")(Marginal())
