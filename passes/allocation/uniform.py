"""The same share everywhere."""

from collections.abc import Mapping

from torch import Tensor

from graphprune.passes.allocation import ALLOCATIONS
from graphprune.planning.budget import Budget
from graphprune.planning.interfaces import Allocation, Evidence


class Uniform(Allocation):
    """Every group keeps the share at which the budget of the whole model is met."""

    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The share that each group keeps, by name."""
        names = [group.name for knob in budget.knobs for group in knob.groups]
        return budget.solve(lambda pressure: dict.fromkeys(names, 1 - pressure))


ALLOCATIONS.register("uniform")(Uniform())
