"""An evolutionary search for widths: shares are moved between groups, and what does least harm survives.

A baseline of this project, after the evolutionary allocation of structured sparsity in the literature (as EvoPress,
arXiv:2410.14649, whose level switches keep the budget in the same way); the loss is that of the whole model.
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
    """The best of `trials` plans: in every generation each of `parents` has `children`, which differ by `reach`.

    A child moves shares of some groups up or down at random, and is brought back to the budget by moving all groups
    alike. The reach falls to a tenth over the generations. The uniform plan is the first parent, so that what is
    found is never worse on the calibration data.
    """

    trials: int = 97
    parents: int = 4
    children: int = 3
    reach: float = 0.3
    needs_calibration = True

    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The share that each group keeps, by name."""
        objective = Objective.of(evidence.program)
        generator = torch.Generator().manual_seed(evidence.seed)

        def judged(wish: Tensor) -> tuple[float, Tensor]:
            gone = projected(budget, wish)
            return objective.loss(chosen(budget.knobs, scores, shares_of(budget, gone))), gone

        living = [judged(torch.zeros(len(budget.knobs), dtype=torch.float64))]
        rounds = max((self.trials - 1) // (self.parents * self.children), 1)
        with progress("searching widths", rounds) as step:
            for i in range(rounds):
                reach = self.reach * 10 ** (-i / rounds)
                brood = [living[n % len(living)] for n in range(self.parents * self.children)]
                living += [judged(_mutated(gone, reach, generator)) for _, gone in brood]
                living = sorted(living, key=lambda one: one[0])[: self.parents]
                step()
        return shares_of(budget, living[0][1])


def _mutated(gone: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    """Shares gone from every knob, shape (knobs,), some of them moved."""
    count = len(gone)
    moved = torch.rand(count, generator=generator) < max(0.3, 2 / count)
    return gone + moved * reach * torch.randn(count, generator=generator, dtype=torch.float64)


ALLOCATIONS.register("evolutionary")(Evolutionary())
