"""Measurements that goals are about: of a dense and a pruned program on the same held-out data, or counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, log
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import PlanError
from graphprune.evaluation.perplexity import Model, window_losses
from graphprune.ir.program import Program
from graphprune.planning.goals import BUDGETS, QUANTITIES, Goal
from graphprune.planning.plan import Plan
from graphprune.statistics.paired import Estimate, PairedSamples
from graphprune.workflows.reduction import amounts
from graphprune.workflows.runs.user_run import UserRun


@dataclass(frozen=True)
class Reading:
    """Quantity of the dense and of a pruned model, measured on the same units."""

    dense: PairedSamples
    pruned: PairedSamples

    def estimate(self, goal: Goal) -> Estimate:
        """The quantity as the goal states it: relative to the dense model, or itself."""
        return self.pruned.relative_to(self.dense) if goal.relative else self.pruned.estimate()

    def met(self, goal: Goal) -> bool:
        """Whether the goal is met with confidence: also at the worse end of the interval."""
        return goal.meets(self.estimate(goal).worst(goal.lower))

    def progress(self, goal: Goal) -> float:
        """0 for the dense model, 1 at the goal, of the worse end of the interval.

        It is infinite where the dense model misses the quality, or meets the cost.
        """
        start, value = 1.0 if goal.relative else self.dense.estimate().value, self.estimate(goal).worst(goal.lower)
        bound = goal.bound
        if self.pruned.logarithms:
            start, value, bound = log(start), log(max(value, 1e-300)), log(bound)
        way = bound - start
        if way == 0 or (way > 0) != (goal.lower != goal.is_cost):
            return inf
        return (value - start) / way

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"dense": self.dense.to_dict(), "pruned": self.pruned.to_dict()}

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> "Reading":
        """Reading from what `to_dict` returned."""
        return cls(PairedSamples.of(table["dense"]), PairedSamples.of(table["pruned"]))


@dataclass
class Qualities:
    """Perplexity on held-out `windows` of a text, and the metric of a `run` on its test data, by name."""

    dense: Program
    windows: Tensor | None = None
    run: UserRun | None = None
    names: Sequence[str] = ()
    known: dict[str, PairedSamples] = field(default_factory=dict)

    def of(self, program: Program) -> dict[str, Reading]:
        """Readings of a pruned program."""
        return self.against(self._samples(program.module(), program))

    def against(self, samples: Mapping[str, PairedSamples]) -> dict[str, Reading]:
        """Readings of samples of a pruned model against those of the dense one."""
        return {name: Reading(self.of_dense[name], value) for name, value in samples.items()}

    @property
    def of_dense(self) -> Mapping[str, PairedSamples]:
        """Samples of the dense model, which is measured once."""
        if not self.known:
            self.known = self._samples(self.dense.module(), self.dense)
        return self.known

    def perplexity(self, model: Model) -> dict[str, PairedSamples]:
        """Samples of a language model on the windows, if there are any."""
        if self.windows is None:
            return {}
        return {"perplexity": PairedSamples(tuple(window_losses(model, self.windows)), logarithms=True)}

    def _samples(self, module: torch.nn.Module, program: Program) -> dict[str, PairedSamples]:
        samples = self.perplexity(program)
        measured = self.run.metric_values(module) if self.run is not None and self.names else []
        if measured:
            values, weights = (tuple(map(float, column)) for column in zip(*measured, strict=True))
            samples |= dict.fromkeys(self.names, PairedSamples(values, weights))
        return samples


@dataclass(frozen=True)
class GoalCosts:
    """Counts of programs against those of the `dense` one: parameters, bytes, and amounts of the budgets in `names`.

    `itemsize` is the number of bytes of a stored parameter.
    """

    dense: Program
    names: frozenset[str]
    itemsize: int

    @cached_property
    def whole(self) -> int:
        """Number of parameters of the dense model."""
        return self.dense.count() + self.dense.constants

    def of(self, original: Program, program: Program, plan: Plan, count: int) -> dict[str, Reading]:
        """Readings of a plan; `count` is the number of parameters after it.

        Args:
            original: The program from which groups were cut.
            program: The pruned program, or the original where only a plan was made.
            plan: The plan.
            count: The number of parameters of the pruned program, without constants.
        """
        after = {name: amounts(self.dense, original, program, plan, BUDGETS[name])[1] for name in self._before}
        return self._readings(count + self.dense.constants, after)

    def without(self, share: float) -> dict[str, Reading]:
        """Readings of a model that lacks this share of everything, to begin with."""
        after = {name: before * (1 - share) for name, before in self._before.items()}
        return self._readings(round(self.whole * (1 - share)), after)

    @cached_property
    def _before(self) -> dict[str, float]:
        """Amounts of the budgets of the dense model.

        Raises:
            PlanError: if it has none of one.
        """
        nothing = Plan("", {}, {})
        known = {name: amounts(self.dense, self.dense, self.dense, nothing, BUDGETS[name])[0]
                 for name in sorted(self.names & BUDGETS.keys())}  # fmt: skip
        for name in (name for name, amount in known.items() if not amount):
            raise PlanError(f"the model has no {QUANTITIES[name].meaning}, so a goal for {name} is empty; omit it")
        return known

    def _readings(self, count: int, after: Mapping[str, float]) -> dict[str, Reading]:
        pairs: dict[str, tuple[float, float]] = {
            "parameters": (self.whole, count),
            "size": (self.whole * self.itemsize, count * self.itemsize),
        }
        pairs |= {name: (self._before[name], after[name]) for name in after}
        return {name: Reading(*map(PairedSamples.exact, pair)) for name, pair in pairs.items()}


def progress_of(goals: Sequence[Goal], readings: Mapping[str, Reading], quant: str = "none") -> float:
    """Progress towards all of some goals: the farthest where qualities must not pass it, the least of costs."""
    suffix = "" if quant == "none" else f" in {quant}"
    values = [readings[goal.key + suffix].progress(goal) for goal in goals]
    return min(values) if any(goal.is_cost for goal in goals) else max(values)
