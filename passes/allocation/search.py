"""The pass that searches calibration data and metric together, by the loss under the resulting plans.

AdaPruner (arXiv:2503.06184) searches both by Bayesian optimization. Its formulas are not public; this is a
reconstruction: the metrics are those of the Taylor family, and parts of the calibration data may be left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from graphprune.axes.groups import Dependencies
from graphprune.display.progress import progress
from graphprune.errors import PlanError
from graphprune.evaluation.masked_loss import Objective
from graphprune.ir.program import Program
from graphprune.passes.allocation.allocate import Allocate
from graphprune.passes.calibration.gradients import Gradients
from graphprune.passes.calibration.loss_of_outputs import Loss, likelihood
from graphprune.passes.scores import SCORES
from graphprune.passes.scores.score import Score
from graphprune.passes.selection.select import Select
from graphprune.pipeline import PASSES, Pass, Pipeline
from graphprune.planning.facts import Eligible, Scores
from graphprune.planning.plan import Plan
from graphprune.statistics.collector import Calibration
from graphprune.statistics.moments import GradientSums, OutputGradients, ParameterGradients
from graphprune.support import packages

GATHERED = (GradientSums, ParameterGradients, OutputGradients)
TAYLOR = ("taylor", "taylor-vector", "taylor-second", "taylor-mixed")


@PASSES.register("search")
@dataclass(frozen=True)
class Search(Pass):
    """Score indices by one of `metrics` on parts of the calibration data, such that the plan has the lowest loss.

    The data are divided into `parts`, each of which a trial may leave out. The tree-structured Parzen estimator of
    optuna proposes `trials`; the first has all data and the first metric. The loss of a trial is that of the model on
    held-out calibration batches under the plan for `sparsity` (or `ratio`), `allocation`, `budget` and `align`. A trial
    costs a backward pass over its data.
    """

    name: ClassVar[str] = "search"
    makes: ClassVar[tuple[type, ...]] = (Eligible, Scores)
    one_of: ClassVar[tuple[str, ...]] = ("sparsity", "ratio")
    resources: ClassVar[tuple[str, ...]] = ("gradients", "optuna")
    metrics: tuple[str, ...] = TAYLOR
    allocation: str = "uniform"
    sparsity: float | None = None
    ratio: float | str | None = None
    budget: str = "parameters"
    align: int = 1
    parts: int = 8
    trials: int = 24
    seed: int = 0
    loss: Loss | None = field(default=None, repr=False)

    @property
    def needs(self) -> tuple[type, ...]:
        """Calibration inputs, and the facts that metrics read, without the gradients that trials gather."""
        read = dict.fromkeys(fact for metric in self.metrics for fact in SCORES[metric].needs)
        return (Dependencies, Eligible, Calibration, *(fact for fact in read if fact not in GATHERED))

    def check(self) -> None:
        """Refuse to run without optuna, and impossible options.

        Raises:
            PackageError: if optuna is missing or broken.
            PlanError: if there is no trial, no part or no metric.
        """
        packages.load("optuna", "search")
        if min(self.trials, self.parts, len(self.metrics)) < 1:
            raise PlanError("a search needs at least one trial, one part of the data and one metric")
        for metric in self.metrics:
            SCORES[metric]

    def preflight(self, program: Program) -> Program:
        """The program whose only eligible groups are those that the first metric scores.

        Raises:
            PlanError: if there is no such group.
        """
        return Score(self.metrics[0], self.seed).preflight(program)

    def run(self, program: Program) -> Program:
        """The program with the scores of the best trial.

        Raises:
            PlanError: if the share cannot be reached.
            CalibrationError: if no loss is given or known, or a gradient is not finite.
        """
        optuna = packages.load("optuna", "search")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=self.seed))
        study.enqueue_trial({"metric": self.metrics[0], **{f"part {i}": True for i in range(self.parts)}})
        trials = _Trials(self, program, Objective.of(program))
        with progress("searching calibration data and metric", self.trials) as step:
            for _ in range(self.trials):
                trial = study.ask()
                metric = trial.suggest_categorical("metric", self.metrics)
                parts = [i for i in range(self.parts) if trial.suggest_categorical(f"part {i}", (True, False))]
                study.tell(trial, trials.loss(metric, tuple(parts)))
                step()
        assert trials.best is not None  # there was a trial
        return program.with_facts(trials.best.fact(Scores), trials.best.fact(Eligible))


@dataclass
class _Trials:
    """The losses of all trials, and the program with the best plan."""

    search: Search
    program: Program
    objective: Objective
    losses: dict[tuple[str, tuple[int, ...]], float] = field(default_factory=dict)
    best: Program | None = None

    def loss(self, metric: str, parts: tuple[int, ...]) -> float:
        """The loss under the plan of a metric on these parts of the data; on all of them if there is none."""
        key = metric, parts
        if key not in self.losses:
            batches = list(self._batches(parts)) or list(self._batches(range(self.search.parts)))
            planned = self._planned(metric, batches)
            loss = self.objective.loss(planned.fact(Plan).groups)
            self.best = planned if loss < min(self.losses.values(), default=float("inf")) else self.best
            self.losses[key] = loss
        return self.losses[key]

    def _batches(self, parts: Sequence[int]) -> Iterator[int]:
        """The indices of the calibration batches in these parts, without those that are held out."""
        calibration = self.program.fact(Calibration)
        count = len(calibration.batches)
        free = [i for i in range(count) if not calibration.held_out(i)]
        return (batch for at, batch in enumerate(free) if at * self.search.parts // len(free) in parts)

    def _planned(self, metric: str, batches: Sequence[int]) -> Program:
        search, calibration = self.search, self.program.fact(Calibration)
        loss = search.loss or likelihood(self.program)
        part = replace(calibration, batches=[calibration.batches[i] for i in batches])

        def loss_of_part(output: Any, i: int) -> Any:
            return loss(output, batches[i])

        steps = (
            Gradients(loss_of_part),
            Score(metric, search.seed),
            Allocate(search.allocation, search.sparsity, search.ratio, search.seed, search.budget),
            Select(search.align),
        )
        return Pipeline(steps, given=search.needs)(self.program.with_facts(part))
