"""The pass that runs calibration inputs through the dense model and gathers moments of the activations."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch

from graphprune.axes.groups import Dependencies
from graphprune.axes.rule import Consumer
from graphprune.display.progress import progress
from graphprune.errors import CalibrationError, because
from graphprune.execution.segments import split
from graphprune.ir.guards import problems
from graphprune.ir.program import Program
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Eligible
from graphprune.statistics.calibration_windows import calibration_windows
from graphprune.statistics.collector import BATCH_TOKENS, Calibration, Collector, token_batches
from graphprune.statistics.moments import FullMoments, Moments, ProducerMoments, Statistics, from_tensors, to_tensors
from graphprune.statistics.stream import Stream
from graphprune.support.durable_steps import Step, stage

SHOWN = 8  # experts in a warning
log = logging.getLogger(__name__)

MOMENTS = ("auto", "none", "diagonal", "full")


@PASSES.register("calibrate")
@dataclass(frozen=True)
class Calibrate(Pass):
    """Gather statistics of the dense model at every consumer of an eligible group.

    `text` names a calibration text, or a mixture (see `calibration_windows`), from which `samples` windows of `length`
    tokens are drawn by `seed`;
    or `batches` holds calls ``(args, kwargs)`` of the model, in which tokens outside the `attention_mask` are not
    counted. `moments` are ``diagonal`` (sums and squares), ``full`` (Gram matrices) or ``none``, for passes that need
    the inputs only. With `producers`, the layers that produce the groups are observed, too. By default, later passes of
    the pipeline decide on both. With `autocast`, this pass and later ones that run the inputs segment by segment or for
    gradients multiply matrices in bfloat16, which is faster where the processor supports it; sums over tokens retain
    their precision. Segments run on `device`, with about `tokens` tokens at once.
    """

    name: ClassVar[str] = "calibrate"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible)
    reads: ClassVar[tuple[type, ...]] = (Calibration,)
    makes_with: ClassVar[Mapping[type, str]] = MappingProxyType(
        {FullMoments: "moments=full", ProducerMoments: "producers=true"}
    )
    memory_bounded: ClassVar[bool] = True
    pure: ClassVar[bool] = True
    resources: ClassVar[tuple[str, ...]] = ("calibration",)
    text: str = ""
    samples: int = 128
    length: int = 512
    seed: int = 0
    moments: str = "auto"
    producers: bool | None = None
    autocast: bool = False
    device: str = "cpu"
    tokens: int = BATCH_TOKENS
    batches: tuple[Any, ...] = field(default=(), repr=False)

    @property
    def makes(self) -> tuple[type, ...]:
        """The inputs, and the gathered moments."""
        moments = {
            Statistics: self.moments != "none",
            FullMoments: self.moments == "full",
            ProducerMoments: bool(self.producers) and self.moments != "none",
        }
        return (Calibration, *(fact for fact, gathered in moments.items() if gathered))

    def before(self, later: Sequence[Pass]) -> Pass:
        """The pass with the moments that later passes need, where they are not set."""
        needed = {fact for step in later for fact in (*step.needs, *step.reads)}
        if not needed & {Calibration, Statistics}:
            return self
        least = "full" if FullMoments in needed else "diagonal" if Statistics in needed else "none"
        producers = True if self.producers is None and ProducerMoments in needed else self.producers
        return replace(self, moments=least if self.moments == "auto" else self.moments, producers=producers)

    def check(self) -> None:
        """Refuse unknown moments, and a device that is missing.

        Raises:
            CalibrationError: if the moments are unknown, or there is no such device.
        """
        if self.moments not in MOMENTS:
            raise CalibrationError(f"moments are {', '.join(MOMENTS[:-1])} or {MOMENTS[-1]}, not {self.moments!r}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as fault:
            raise CalibrationError(f"there is no device {self.device!r} here{because(fault)}") from fault

    def run(self, program: Program) -> Program:
        """The program with its calibration inputs and statistics.

        Raises:
            CalibrationError: if there is no usable calibration data, or activations are not finite.
        """
        calibration = self._calibration(program)
        fresh = program.without(Statistics, FullMoments, ProducerMoments).with_facts(calibration)
        if self.moments == "none":
            return fresh
        dependencies, groups = program.fact(Dependencies), program.fact(Eligible).groups
        consumers = [*dependencies.maps_of(groups, bool(self.producers)), *dependencies.stacked(groups)]
        collector = Collector(consumers, self.moments != "full")
        sweep(program, calibration, collector)
        _warn_of_rare_members(consumers, collector.moments)
        gathered = (FullMoments(), ProducerMoments())
        return fresh.with_facts(Statistics(collector.moments), *(fact for fact in gathered if type(fact) in self.makes))

    def _calibration(self, program: Program) -> Calibration:
        if self.batches:
            leaves = _fitting(program, [program.flat(args, kwargs) for args, kwargs in self.batches])
            return Calibration(
                leaves,
                "batches given from Python",
                len(leaves),
                0,
                self.seed,
                autocast=self.autocast,
                device=self.device,
            )
        known: Calibration | None = program.facts.get(Calibration)
        options = self.text, self.samples, self.length, self.seed, self.autocast, self.device
        if known and _options(known) == options:
            return known
        if not self.text or program.source is None:
            raise CalibrationError(
                "there is nothing to calibrate on: name a text file, or pass batches of inputs from Python"
            )
        ids = calibration_windows(program.source, self.text, self.samples, self.length, self.seed)
        sha256 = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
        batches = _fitting(program, token_batches(program, ids, self.tokens))
        return Calibration(batches, self.text, self.samples, self.length, self.seed, sha256, self.autocast, self.device)


def _fitting(program: Program, batches: list[list[Any]]) -> list[list[Any]]:
    """The batches, if the graph holds for all of them.

    Raises:
        CalibrationError: if it does not.
    """
    check = program.input_check()
    for i, leaves in enumerate(batches):
        for problem in problems(check.expected, check.guards, leaves):
            raise CalibrationError(
                f"the graph does not hold for calibration batch {i}: {problem} (the length and number of windows of a "
                "text are --length and --samples)"
            )
    return batches


def _warn_of_rare_members(consumers: Sequence[Consumer], moments: Mapping[str, Moments]) -> None:
    """Log the members of stacks, such as experts, that fewer rows reach than they have columns."""
    by_stack: dict[str, list[Consumer]] = {}
    for consumer in (c for c in consumers if c.member is not None and c.member.offsets is not None):
        by_stack.setdefault(consumer.weight, []).append(consumer)
    for weight, members in by_stack.items():
        counts = {c.member.index: moments[c.key].tokens for c in members if c.member is not None}
        width = len(moments[members[0].key].sums)
        if rare := {index: count for index, count in counts.items() if count < width}:
            shown = [f"{index} ({count})" for index, count in list(rare.items())[:SHOWN]]
            log.warning(
                "few calibration tokens reach %d of the %d experts of %s, fewer than the %d columns of each: %s%s; "
                "their refits are damped, and their scores uncertain: calibrate on more text",
                len(rare), len(counts), weight, width, ", ".join(shown), ", ..." * (len(rare) > SHOWN),
            )  # fmt: skip


def _options(known: Calibration) -> tuple[Any, ...]:
    """The options of these inputs."""
    return known.source, known.samples, known.length, known.seed, known.autocast, known.device


def sweep(program: Program, calibration: Calibration, collector: Collector) -> None:
    """Run all batches through the dense segments, up to the last consumer of the collector."""
    nodes = {consumer.node for consumer in collector.consumers}
    segments = split(program, nodes)
    segments = segments[: max((i + 1 for i, segment in enumerate(segments) if nodes & segment.names), default=0)]
    stream, steps = Stream.start(program, calibration), stage("calibrate")
    done = steps.finished(len(segments))
    for step in done:
        _resume(step, stream, collector)
    with progress("calibrating", (len(segments) - len(done)) * len(stream.batch_indices)) as tick:
        for i, segment in enumerate(segments[len(done) :], len(done) + 1):
            in_segment = collector.restricted_to(segment.names)
            for following in segments[i : i + 1]:
                stream.prefetch(following)
            exits = stream.advance(segment, stream.program.weights, tick, [in_segment] * len(stream.batch_indices))
            in_segment.all_reduce()
            moments = {consumer.key: collector.moments[consumer.key] for consumer in in_segment.consumers}
            tensors, tokens = to_tensors(moments)
            _resume(steps.finish(Step(tokens, tensors, {"entries": exits})), stream, collector)
    steps.wait()


def _resume(step: Step, stream: Stream, collector: Collector) -> None:
    """Continue after a finished step."""
    collector.moments |= from_tensors(step.tensors, step.facts)
    stream.entries = step.values.get("entries", ())  # of the steps of an earlier run, only the last one has entries
