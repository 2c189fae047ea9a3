"""Evolutionary search for widths: mutations move shares between groups, and the plans of lowest loss survive.

A baseline of this project, after evolutionary allocations in the literature, such as EvoPress (arXiv:2410.14649), whose
level switches preserve the budget in the same way. The loss is that of the whole model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.display.progress import progress
from graphprune.evaluation.masked_loss import Objective
from graphprune.passes.allocation import ALLOCATIONS
from graphprune.planning.budget import Budget
from graphprune.planning.interfaces import Allocation, Evidence
from graphprune.planning.ranking import chosen, projected, shares_of


@dataclass(frozen=True)
class Evolutionary(Allocation):
    """The best of `trials` plans: in every generation each of `parents` has `children`, mutated with deviation `reach`.

    A child has shares of some groups moved up or down at random, and is projected on the budget by one shift of all
    groups. The reach decays to a tenth over the generations. The uniform plan is the first parent, so that the result
    is never worse on the calibration data.
    """

    trials: int = 97
    parents: int = 4
    children: int = 3
    reach: float = 0.3
    needs_calibration = True

    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The retained share of each group, by name."""
        objective = Objective.of(evidence.program)
        generator = torch.Generator().manual_seed(evidence.seed)

        def evaluated(removed: Tensor) -> tuple[float, Tensor]:
            removed = projected(budget, removed)
            return objective.loss(chosen(budget.knobs, scores, shares_of(budget, removed), budget.requested)), removed

        population = [evaluated(torch.zeros(len(budget.knobs), dtype=torch.float64))]
        rounds = max((self.trials - 1) // (self.parents * self.children), 1)
        with progress("searching widths", rounds) as step:
            for i in range(rounds):
                reach = self.reach * 10 ** (-i / rounds)
                parents = [population[n % len(population)] for n in range(self.parents * self.children)]
                population += [evaluated(_mutated(removed, reach, generator)) for _, removed in parents]
                population = sorted(population, key=lambda one: one[0])[: self.parents]
                step()
        return shares_of(budget, population[0][1])


def _mutated(removed: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    """Removed shares of knobs, shape (knobs,), some of them moved at random."""
    count = len(removed)
    moved = torch.rand(count, generator=generator) < max(0.3, 2 / count)
    return removed + moved * reach * torch.randn(count, generator=generator, dtype=torch.float64)


ALLOCATIONS.register("evolutionary")(Evolutionary())
