"""Equal marginal loss, with the scores of the kinds of groups balanced by trials.

A score that estimates the growth of the loss from one layer at a time can be wrong by a factor that depends on the kind
of group: it sees less of what a head costs in every layer than of what neurons cost. This method multiplies the scores
of a kind by a factor, and measures the loss of the plan that follows. A baseline of this project.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import log2

from torch import Tensor

from graphprune.axes.rule import Consumer
from graphprune.display.progress import no_progress, progress
from graphprune.evaluation.masked_loss import Objective
from graphprune.ir.program import Program
from graphprune.passes.allocation import ALLOCATIONS
from graphprune.passes.selection.select import widths_at
from graphprune.planning.budget import Budget
from graphprune.planning.interfaces import Allocation, Evidence
from graphprune.planning.ranking import growth_shares, top
from graphprune.solvers.quick_refit import quickly_refitted
from graphprune.statistics.moments import GradientSums, Moments, Statistics

Factors = Mapping[str, float]
STEPS, MOST = (2.0, 0.5), 16.0


class Balanced(Allocation):
    """Removal of the indices with the least growth of the loss per cost, times a factor for each kind of group.

    The kind that costs most has the factor 1. For each of the others in turn, the factor is doubled, and then halved,
    as long as the loss of the plan on held-out calibration batches does not grow. Each linear layer is refitted on its
    own for a trial.
    """

    needs_calibration = True
    reads = (Statistics, GradientSums)

    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The retained share of each group, by name.

        Raises:
            PlanError: if the target is more than the groups can give.
        """
        budget.require()
        trials = _Trials(budget, scores, evidence.program, Objective.of(evidence.program))
        kinds = sorted({knob.groups[0].label: None for knob in budget.knobs}, key=trials.cost, reverse=True)
        best: Factors = dict.fromkeys(kinds, 1.0)
        most = len(kinds[1:]) * len(STEPS) * round(log2(MOST))
        with progress("balancing kinds of groups", 1 + most if most else 0) as trials.step:
            for kind in kinds[1:]:
                for way in STEPS:
                    best = trials.descend(best, kind, way)
        return trials.shares(best)


@dataclass
class _Trials:
    """The losses of the plans that were tried, by their widths."""

    budget: Budget
    scores: Mapping[str, Tensor]
    program: Program
    objective: Objective
    losses: dict[tuple[int, ...], float] = field(default_factory=dict)
    step: Callable[..., None] = no_progress  # called after each trial

    def cost(self, kind: str) -> float:
        """What all indices of a kind cost."""
        return sum(self.budget.cost_per_index(k) * k.size for k in self.budget.knobs if k.groups[0].label == kind)

    def descend(self, best: Factors, kind: str, way: float) -> Factors:
        """The factors after the one of a kind was multiplied by `way` as long as the loss does not grow."""
        factor, least = best[kind], self.loss(best)
        while 1 / MOST <= (factor := factor * way) <= MOST:
            trial = {**best, kind: factor}
            if (loss := self.loss(trial)) > least:
                break
            best, least = trial, loss
        return best

    def shares(self, factors: Factors) -> Mapping[str, float]:
        """The retained share of each group, by name."""
        kinds = {group.name: knob.groups[0].label for knob in self.budget.knobs for group in knob.groups}
        weighted = {name: self.scores[name] * factors[kind] for name, kind in kinds.items()}
        return growth_shares(self.budget, weighted)

    def loss(self, factors: Factors) -> float:
        """The loss of the plan with these factors."""
        widths = widths_at(self.budget, self.shares(factors))
        key = tuple(widths.values())
        if key not in self.losses:
            rows = {n: top(self.scores[n], w) for n, w in widths.items() if w < self.scores[n].shape[1]}
            self.losses[key] = self.objective.loss(rows, quickly_refitted(self.program, rows, self._moments))
            self.step()
        return self.losses[key]

    def _moments(self, consumer: Consumer) -> Moments | None:
        """The moments of the inputs of a layer, in which tokens count by their gradients if these are known."""
        gradients, statistics = (self.program.facts.get(fact) for fact in (GradientSums, Statistics))
        weighted = gradients.input_moments.get(consumer.key) if gradients else None
        return weighted or (statistics.moments.get(consumer.key) if statistics else None)


ALLOCATIONS.register("balanced")(Balanced())
