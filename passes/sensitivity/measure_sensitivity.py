"""The pass that measures the growth of the loss when each group alone is cut.

Groups are visited in the order in which the graph reads them. A cut changes nothing before the first segment that reads
one of its parameters, so every trial starts from the activations of the dense model at this segment. Only these are
held, and moved forward from segment to segment. The trials of a group go through each segment together, so that its
weights are loaded once. In a workspace, finished groups are durable steps.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from graphprune.axes.groups import Dependencies, Group
from graphprune.axes.rule import Consumer
from graphprune.display.progress import progress
from graphprune.errors import CalibrationError, PlanError
from graphprune.evaluation.masked_loss import ChangedWeights, Objective
from graphprune.ir.checksums import checksum
from graphprune.ir.program import Program
from graphprune.ir.weights import KeepByName, Layered, Masked
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.budget import Knob
from graphprune.planning.facts import Eligible, Scores
from graphprune.planning.plan import Rows, by_parameter, primes_to_keep
from graphprune.planning.ranking import top
from graphprune.planning.sensitivity_table import LOSSES, Sensitivities, Trial
from graphprune.solvers import new_biases
from graphprune.statistics.collector import Calibration, Collector
from graphprune.statistics.moments import Moments
from graphprune.statistics.stream import Stream
from graphprune.support.durable_steps import Step, stage

NONE = "none"


@PASSES.register("measure-sensitivity")
@dataclass(frozen=True)
class MeasureSensitivity(Pass):
    """Cut each group alone by the shares `ratios`, by its scores, and measure the loss (see `Objective`) on held-out
    calibration batches: without a refit, and with the linear layers that read the group refitted to the other batches,
    `by` a registered method (``none``: without a refit only)."""

    name: ClassVar[str] = "measure-sensitivity"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible, Scores, Calibration)
    makes: ClassVar[tuple[type, ...]] = (Sensitivities,)
    ratios: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75)
    by: str = "least-squares"

    def check(self) -> None:
        """Refuse impossible options.

        Raises:
            PlanError: if a ratio is no share, or there is none.
            CalibrationError: if the refit adds biases.
        """
        wrong = [r for r in self.ratios if isinstance(r, str) or not 0 < r < 1]
        if wrong or not self.ratios:
            raise PlanError(f"ratios must lie between 0 and 1 (0.25 removes a quarter), got {wrong or 'none'}")
        if RECONSTRUCTIONS[self.by].adds_bias:
            raise CalibrationError(f"{self.by} adds biases, which a trial cannot; refit by another method, or by none")

    def run(self, program: Program) -> Program:
        """The program with its sensitivities.

        Raises:
            CalibrationError: if there is too little calibration data, or a loss is not finite.
            WorkspaceError: if a finished group cannot be written to the workspace.
        """
        measurement = _Measurement(program, self.by, self.ratios)
        trials, objective = measurement.run(), measurement.objective
        sensitivities = Sensitivities(
            program.fingerprint(), objective.dense, LOSSES[objective.is_language_model], program.fact(Scores).method,
            self.by, trials, self._inputs(program),
            {group.name: group.label for group in program.fact(Eligible).groups},
        )  # fmt: skip
        return program.with_facts(sensitivities)

    def _inputs(self, program: Program) -> dict[str, Any]:
        """Everything that a loss depends on, except the group, its width and whether it is refitted."""
        calibration = program.fact(Calibration)
        return {
            "model": program.fingerprint(),
            "weights": program.checksum(),
            "text": calibration.source,
            "samples": calibration.samples,
            "length": calibration.length,
            "seed": calibration.seed,
            "tokens": checksum(leaf for leaves in calibration.batches for leaf in leaves),
            "score": program.fact(Scores).method,
            "refit": self.by,
        }


class _Cut(NamedTuple):
    """A trial before it is run."""

    group: str
    size: int
    width: int
    ratio: float
    refitted: bool

    def __str__(self) -> str:
        return f"{self.group} {self.size} -> {self.width}{' refitted' if self.refitted else ''}"


@dataclass
class _Measurement:
    """All trials of one program, and the activations of the dense model with which they start: `judged` those of the
    batches that the loss is measured on, `fitted` those of the batches that weights are refitted to."""

    program: Program
    by: str
    ratios: Sequence[float]
    at: int = 0
    judged: Stream = field(init=False)
    fitted: Stream = field(init=False)

    def __post_init__(self) -> None:
        calibration = self.program.fact(Calibration)
        held_out = [calibration.held_out(i) for i in range(len(calibration.batches))]
        if self.by != NONE and not any(held_out):
            raise CalibrationError("a refit needs other batches than those it is judged by; give more samples")
        rest = [leaves for leaves, out in zip(calibration.batches, held_out, strict=True) if not out]
        self.objective = Objective.of(self.program)
        self.judged = Stream.start(self.program, replace(calibration, batches=self.objective.batches, autocast=False))
        self.fitted = Stream.start(self.program, replace(calibration, batches=rest if self.by != NONE else []))

    @cached_property
    def dependencies(self) -> Dependencies:
        """The axes of the program."""
        return self.program.fact(Dependencies)

    @cached_property
    def cuts(self) -> Mapping[Group, list[_Cut]]:
        """The trials of every group that can be cut, in the order in which the graph reads the groups."""
        groups = sorted(self.program.fact(Eligible).groups, key=self._first_segment)
        by_group = {group: list(self._cuts_of(group)) for group in groups}
        return {group: cuts for group, cuts in by_group.items() if cuts}

    def _cuts_of(self, group: Group) -> Iterator[_Cut]:
        """The trials of one group, the widest first; those of one width without the refit first."""
        ways = (False, True) if self._readers_of(group) else (False,)
        for width, ratio in self._widths(group):
            for refitted in ways:
                yield _Cut(group.name, group.size, width, ratio, refitted)

    def run(self) -> tuple[Trial, ...]:
        """Run the trials of all groups, but for those that an earlier run has finished."""
        steps = stage(MeasureSensitivity.name)
        losses = {step.facts["group"]: step.facts["losses"] for step in steps.finished(len(self.cuts))}
        remaining = [group for group in self.cuts if group.name not in losses]
        self.objective.dense  # noqa: B018 - runs the dense model before the bar shows
        with progress("trying groups", sum(map(len, self.cuts.values()))) as tick:
            tick(sum(map(len, losses.values())))
            for _, stretch in groupby(remaining, self._first_segment):
                for group, measured in self._stretch(list(stretch)):
                    losses[group.name] = measured
                    steps.finish(Step({"group": group.name, "losses": measured}, {}))
                    tick(len(measured))
        steps.wait()
        return tuple(
            Trial(*cut, loss)
            for group, cuts in self.cuts.items()
            for cut, loss in zip(cuts, losses[group.name], strict=True)
        )

    def _stretch(self, groups: Sequence[Group]) -> Iterator[tuple[Group, list[float]]]:
        """The losses of groups that are first read by the same segment."""
        self._move(self._first_segment(groups[0]))
        consumers = {consumer.node: consumer for group in groups for consumer in self._readers_of(group)}
        moments = self._moments(list(consumers.values()))
        for group in groups:
            yield group, self._losses(self.cuts[group], moments)

    def _losses(self, cuts: Sequence[_Cut], moments: Mapping[str, Moments]) -> list[float]:
        """The losses of the trials of one group."""
        if self.dependencies.by_name[cuts[0].group].routed:  # zeros in a router would be scores like others
            losses = [self.objective.loss(self._rows(cut)) for cut in cuts]
        else:
            trials = [self._changed(cut, moments if cut.refitted else {}) for cut in cuts]
            losses = self.objective.losses_from(self.at, self.judged.entries, trials)
        for cut, loss in zip(cuts, losses, strict=True):
            if not math.isfinite(loss):
                raise CalibrationError(f"the loss of {cut} is {loss}; check the model and the calibration data")
        return losses

    def _widths(self, group: Group) -> list[tuple[int, float]]:
        """The legal widths nearest to the ratios, the widest first, with the ratio; of several the lowest."""
        knob, ratio_of = Knob.of([group]), dict[int, float]()
        for ratio in sorted(self.ratios):
            ratio_of.setdefault(knob.floor((1 - ratio) * group.size + 0.5), ratio)
        return [(width, ratio) for width, ratio in ratio_of.items() if width < group.size]

    def _first_segment(self, group: Group) -> int:
        """The segment in which the group is first read."""
        return self._first_segments[group.name]

    @cached_property
    def _first_segments(self) -> Mapping[str, int]:
        groups = self.program.fact(Eligible).groups
        return {g.name: self.objective.first_segment({place.parameter for place in g.places}) for g in groups}

    def _readers_of(self, group: Group) -> list[Consumer]:
        """The linear layers that read the group and can be refitted: each with a weight of its own."""
        consumers = self.dependencies.consumers_of(group) if self.by != NONE and not group.routed else []
        return [consumer for consumer in consumers if self._reader_counts[consumer.weight] == 1]

    @cached_property
    def _reader_counts(self) -> Mapping[str, int]:
        return new_biases.count_readers(self.program)

    def _move(self, to: int) -> None:
        """Bring both streams to the entry of a segment."""
        for segment in self.objective.segments[self.at : to]:
            for stream in (self.judged, self.fitted):
                stream.entries = stream.advance(segment, self.program.weights)
        self.at = max(self.at, to)

    def _moments(self, consumers: Sequence[Consumer]) -> dict[str, Moments]:
        """The moments of the dense inputs of layers, gathered from the current segment to the last of them."""
        collector, ahead = Collector(consumers), replace(self.fitted)
        unseen = {consumer.node for consumer in consumers}
        for segment in self.objective.segments[self.at :]:
            if not unseen:
                break
            in_segment = collector.restricted_to(segment.names)
            collectors = [in_segment] * len(ahead.batch_indices)
            ahead.entries = ahead.advance(segment, self.program.weights, collectors=collectors)
            unseen -= segment.names
        return collector.moments

    def _rows(self, cut: _Cut) -> dict[str, Rows]:
        """Indices that the group of a trial retains."""
        return {cut.group: top(self.program.fact(Scores).by_group[cut.group], cut.width)}

    def _changed(self, cut: _Cut, moments: Mapping[str, Moments]) -> ChangedWeights:
        """The weights after a cut of one group, with its linear layers refitted where there are moments."""
        keep = by_parameter(self.dependencies, primes_to_keep(self.dependencies, self._rows(cut)))
        masked = Masked(self.program.weights, keep)
        readers = self._readers_of(self.dependencies.by_name[cut.group]) if moments else []
        new = {consumer.weight: self._refitted(consumer, keep, moments[consumer.node]) for consumer in readers}
        return ChangedWeights(Layered((Masked(new, keep), masked)) if new else masked, keep.keys())

    def _refitted(self, consumer: Consumer, keep: KeepByName, moments: Moments) -> Tensor:
        """The weight in its old shape, with new values in the retained columns."""
        weight = self.program.weights[consumer.weight]
        matrix, retained = consumer.matrix(weight), consumer.columns(keep[consumer.weight][consumer.dim])
        new = RECONSTRUCTIONS[self.by].refit(matrix, retained, moments, None, None).weight
        return consumer.restore(matrix.index_copy(1, retained, new.to(matrix.dtype))).contiguous()
