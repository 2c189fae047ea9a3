"""Bypass-BP (arXiv:2406.10576): retention probabilities learned by policy gradient, from forward passes alone.

A mask is drawn with Bernoulli probabilities s. The gradient of the expected loss is that of log p(mask | s) times the
loss, minus a moving average of losses as a baseline. After every step s is projected on the budget and clipped to
[0, 1]. This structured version is a reconstruction: the indices of a group share one probability, and the number drawn
of them is retained by score, as in the final plan. The gradient then has few dimensions, and some hundred forward
passes suffice. As in the authors' code s starts from the uniform plan.
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

EDGE = 0.02  # least distance of probabilities from 0 and 1, where exploration would end


@dataclass(frozen=True)
class Policy(Allocation):
    """Natural policy gradient in `steps`, each with two antithetic masks.

    A step is `rate` times the deviation of a mask from s, weighted by its loss minus the baseline, in units of the mean
    deviation of losses. The rate decays to a tenth.

    A group has `draws` Bernoulli trials, each for an equal part of its indices: more trials vary masks less. `memory`
    is the weight of the old value in moving averages.
    """

    steps: int = 48
    rate: float = 1.0
    draws: int = 16
    memory: float = 0.8
    needs_calibration = True

    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The retained share of each group, by name."""
        objective, generator = Objective.of(evidence.program), torch.Generator().manual_seed(evidence.seed)
        keep = 1 - projected(budget, torch.zeros(len(budget.knobs), dtype=torch.float64))
        baseline, scale = None, None
        with progress("learning widths", self.steps) as step:
            for i in range(self.steps):
                s = keep.clamp(EDGE, 1 - EDGE)
                drawn = self._drawn(s, generator)
                losses = [
                    objective.loss(chosen(budget.knobs, scores, shares_of(budget, 1 - d), budget.requested))
                    for d in drawn
                ]
                mean = sum(losses) / len(losses)
                baseline = mean if baseline is None else self.memory * baseline + (1 - self.memory) * mean
                off = max(abs(loss - baseline) for loss in losses)
                scale = off if scale is None else self.memory * scale + (1 - self.memory) * off
                # The natural gradient of log p, that is its gradient times the inverse Fisher information, is d - s.
                pairs = zip(losses, drawn, strict=True)
                slope = torch.stack([(loss - baseline) * (d - s) for loss, d in pairs]).mean(0)
                rate = self.rate * 10 ** (-i / self.steps) / max(scale, 1e-12)
                keep = 1 - projected(budget, 1 - keep + rate * slope)
                step()
        return shares_of(budget, 1 - keep)

    def _drawn(self, s: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Two shares of ones among Bernoulli trials, shape (knobs,), from the same uniform numbers u and from 1 - u."""
        u = torch.rand(self.draws, len(s), generator=generator, dtype=torch.float64)
        return [(v < s).double().mean(0) for v in (u, 1 - u)]


ALLOCATIONS.register("policy")(Policy())
