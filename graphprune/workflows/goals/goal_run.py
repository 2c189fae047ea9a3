"""Pruning to goals: one calibration serves all shares, and trials on held-out data confirm the share."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from graphprune.errors import PlanError
from graphprune.ir.program import Program
from graphprune.pipeline import Pass, Pipeline
from graphprune.planning.goals import Goal, budget_of, parse
from graphprune.support import distributed
from graphprune.workflows.goals.goal_choice import Choice, require_dense, smallest
from graphprune.workflows.goals.goal_data import label_loss
from graphprune.workflows.goals.goal_measures import GoalCosts, Qualities
from graphprune.workflows.goals.goal_outcome import Reached
from graphprune.workflows.goals.goal_timing import Timing
from graphprune.workflows.goals.goal_trials import DIGITS, ShareTrials
from graphprune.workflows.options import PruneOptions
from graphprune.workflows.runs.user_run import UserRun

log = logging.getLogger("graphprune.run")

#: Pipeline of a run with options, and with those that do not come from the user.
Builder = Callable[..., Pipeline]


@dataclass(frozen=True)
class GoalPipeline:
    """Pipeline of a run whose share follows from its goals, or that measures a frontier.

    `windows` of a text and the data of `run` confirm; `more` are options of passes that do not come from the user.
    """

    options: PruneOptions
    builder: Builder
    run: UserRun | None = None
    windows: Tensor | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Passes of a trial."""
        return self.build(0.2).passes

    @cached_property
    def goals(self) -> tuple[Goal, ...]:
        """Goals of the run."""
        return self.options.goals

    def build(self, share: float) -> Pipeline:
        """Pipeline that removes a share."""
        return self.builder(replace(self._plain, sparsity=share), **self.more)

    @cached_property
    def _plain(self) -> PruneOptions:
        """Options of a run without goals."""
        own = self.options
        budget = budget_of(self.goals) if own.budget == "parameters" and own.sparsity is None else own.budget
        known: dict[str, Any] = {"goal": (), "frontier": False, "text": None, "quant": "none", "budget": budget}
        if own.labelled is not None:  # read as data with a loss, which are in `more`
            known |= {"labelled": None, "data": (), "loss": own.loss if own.loss is not None else label_loss}
        elif own.data is None and not own.batches and own.calibration is None:
            known |= {"calibration": own.text}
        return replace(own, **known)

    def __call__(self, program: Program) -> Program:
        """Program at the goals.

        Raises:
            PlanError: if they are out of reach, with what is nearest.
        """
        if distributed.world_size() > 1:
            raise PlanError("goals are searched by one process; run without torchrun, or give a share such as sparsity")
        qualities = Qualities(program, self.windows, self.run, self._metrics)
        names = frozenset({goal.quantity for goal in self.goals} | ({"macs"} if self.options.frontier else set()))
        destination, quant = self.options.destination or "free", self.options.quant
        timed = (*self.goals, *((parse("latency <= 0.999x on torch"),) if self.options.frontier else ()))
        timing = Timing(program, timed, destination, qualities, quant)
        trials = ShareTrials.start(
            program, self.build, GoalCosts(program, names, self._itemsize(program)), qualities, timing
        )
        share, quant, sizes = self._chosen(trials)
        if self.options.frontier:
            self._draw(trials)
        trials.trial(share)
        ordered = tuple(sorted(trials.done.values(), key=lambda trial: trial.share))
        reached = Reached(self.goals, share, ordered, self._plain.budget, quant, sizes, self.options.frontier)
        return trials.pruned(share).with_facts(reached)

    def _draw(self, trials: ShareTrials) -> None:
        """Try the shares of the frontier; those that cannot be removed are named in the log."""
        for share in self.options.frontier_at:
            try:
                trials.trial(share)
            except PlanError as fault:
                log.warning("the frontier has no point at share %g: %s", share, fault)

    def _chosen(self, trials: ShareTrials) -> tuple[float, str, Mapping[str, float | None]]:
        """Share, the weights of the smallest model, and the sizes of the alternatives where there are any.

        Raises:
            PlanError: if no model meets the goals.
        """
        if not self.goals:
            assert self.options.sparsity is not None
            return round(self.options.sparsity, DIGITS), "none", {}
        require_dense(trials.qualities, self.goals)
        if self.options.quant == "none":
            return Choice(trials, self.goals).share(), "none", {}
        return smallest(trials, self.goals, self.options.quant)

    @property
    def _metrics(self) -> tuple[str, ...]:
        """Quantities that the metric of the run is the value of."""
        if self.run is None or not callable(self.run.options.metric):
            return ()
        return tuple({goal.quantity for goal in self.goals} & {"accuracy", "metric"}) or ("metric",)

    def _itemsize(self, program: Program) -> int:
        """Bytes of a stored parameter."""
        stored = program.source is not None and self.options.destination != "free"
        return program.source.dtype.itemsize if stored and program.source else 4
