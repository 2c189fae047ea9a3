"""Uniform allocation: the same share of every group."""

from collections.abc import Mapping

from torch import Tensor

from graphprune.passes.allocation import ALLOCATIONS
from graphprune.planning.budget import Budget
from graphprune.planning.interfaces import Allocation, Evidence


class Uniform(Allocation):
    """Every group retains the share at which the budget of the whole model is met."""

    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The retained share of each group, by name."""
        return budget.uniform


ALLOCATIONS.register("uniform")(Uniform())
