"""The pass that measures how much worse the model gets when each group alone is cut.

Groups are visited in the order in which the graph reads them. A cut changes nothing before the first segment that reads
one of its parameters, so every trial starts from what the dense model makes up to there; only that is kept, and moved
forward from segment to segment. The trials of a group go through each segment together, so that it is loaded once.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from graphprune.axes.groups import Dependencies, Group
from graphprune.axes.rule import Consumer
from graphprune.display.progress import progress
from graphprune.errors import CalibrationError, PlanError
from graphprune.evaluation.masked_loss import ChangedWeights, Objective
from graphprune.ir.program import Program
from graphprune.ir.weights import KeepByName, Layered, Masked
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.passes.reconstructions.sequential_refit import columns
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.budget import Knob
from graphprune.planning.facts import Eligible, Scores
from graphprune.planning.plan import by_parameter, primes_to_keep
from graphprune.planning.ranking import top
from graphprune.planning.sensitivity_table import LOSSES, Sensitivities, Trial
from graphprune.solvers import new_biases
from graphprune.statistics.collector import Calibration, Collector
from graphprune.statistics.moments import Moments
from graphprune.statistics.stream import Stream
from graphprune.support.journal import Journal

NONE = "none"


@PASSES.register("measure-sensitivity")
@dataclass(frozen=True)
class Sense(Pass):
    """Cut each group alone by the shares `ratios`, by its scores, and measure the loss (see `Objective`) on held-out
    calibration batches: as it is, and with the maps that read the group refitted to the others, `by` a registered
    method (``none``: not at all). `journal` names a file in which the trials of finished groups are kept, so that
    the same work goes on where it stopped."""

    name: ClassVar[str] = "measure-sensitivity"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible, Scores, Calibration)
    makes: ClassVar[tuple[type, ...]] = (Sensitivities,)
    ratios: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75)
    by: str = "least-squares"
    journal: str = ""

    def check(self) -> None:
        """Refuse options that cannot be.

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
        """The program with what was measured.

        Raises:
            CalibrationError: if there is too little calibration data, or what the model makes of it is not finite.
            LoadError: if the journal was begun with other inputs.
        """
        inputs = self._inputs(program)
        journal = Journal.open(Path(self.journal) if self.journal else None, inputs)
        trials = _Trials(program, self.by, self.ratios, journal)
        trials.run()
        judge = trials.judge
        made = {step["key"]: step["loss"] for step in journal.steps}
        found = tuple(Trial(*key, made[_text(key)]) for key in trials.keys)
        fact = Sensitivities(
            program.fingerprint(), judge.dense, LOSSES[judge.is_language_model], program.fact(Scores).method, self.by,
            found, inputs, {group.name: group.label for group in program.fact(Eligible).groups},
        )  # fmt: skip
        return program.with_facts(fact)

    def _inputs(self, program: Program) -> dict[str, Any]:
        """All that a loss depends on but the group, its width and whether it is refitted."""
        calibration = program.fact(Calibration)
        return {
            "model": program.fingerprint(),
            "weights": _digest(program.weights[name] for name in sorted(program.parameters)),
            "text": calibration.source,
            "samples": calibration.samples,
            "length": calibration.length,
            "seed": calibration.seed,
            "tokens": _digest(leaf for leaves in calibration.batches for leaf in leaves),
            "score": program.fact(Scores).method,
            "refit": self.by,
        }


Key = tuple[str, int, int, float, bool]


def _text(key: Key) -> str:
    """A trial in one line of the journal."""
    name, size, width, _, refitted = key
    return f"{name} {size} -> {width}{' refitted' if refitted else ''}"


@dataclass
class _Trials:
    """All trials of one program, and the two streams of the dense model on which they stand: one of the batches that
    are `judged`, and one of those that the refit is `fitted` to."""

    program: Program
    by: str
    ratios: Sequence[float]
    journal: Journal
    at: int = 0
    judged: Stream = field(init=False)
    fitted: Stream = field(init=False)

    def __post_init__(self) -> None:
        calibration = self.program.fact(Calibration)
        held = [calibration.held_out(i) for i in range(len(calibration.batches))]
        if self.by != NONE and not any(held):
            raise CalibrationError("a refit wants other batches than those it is judged by; give more samples")
        rest = [leaves for leaves, out in zip(calibration.batches, held, strict=True) if not out]
        self.judge = Objective.of(self.program)
        self.judged = Stream.start(self.program, replace(calibration, batches=self.judge.batches, autocast=False))
        self.fitted = Stream.start(self.program, replace(calibration, batches=rest if self.by != NONE else []))

    @cached_property
    def dependencies(self) -> Dependencies:
        """The axes of the program."""
        return self.program.fact(Dependencies)

    @cached_property
    def keys(self) -> list[Key]:
        """What is tried, group after group in the order in which the graph reads them."""
        found = sorted(self.program.fact(Eligible).groups, key=self._first)
        return [
            (group.name, group.size, width, ratio, refitted)
            for group in found
            for width, ratio in self._widths(group)
            for refitted in ((False, True) if self._maps(group) else (False,))
        ]

    def run(self) -> None:
        """Try what the journal does not know yet."""
        done = {step["key"] for step in self.journal.steps}
        left = [key for key in self.keys if _text(key) not in done]
        self.judge.dense  # noqa: B018 - runs the dense model before the bar shows
        with progress("trying groups", len(self.keys)) as step:
            step(len(self.keys) - len(left))
            names = list(dict.fromkeys(key[0] for key in left))
            for _, here in groupby(map(self.dependencies.by_name.__getitem__, names), self._first):
                self._stretch(list(here), left, step)

    def _stretch(self, groups: Sequence[Group], keys: Sequence[Key], step: Callable[..., None]) -> None:
        """Measure what is left to try of groups that are first read by the same segment."""
        self._move(self._first(groups[0]))
        refitted = {key[0] for key in keys if key[-1]}
        maps = {c.node: c for group in groups if group.name in refitted for c in self._maps(group)}
        moments = self._moments(list(maps.values()))
        for group in groups:
            self._group(group, [key for key in keys if key[0] == group.name], moments, step)

    def _group(
        self, group: Group, keys: Sequence[Key], moments: Mapping[str, Moments], step: Callable[..., None]
    ) -> None:
        """Measure what is left to try of one group."""
        trials = [self._changed(group, key[2], moments if key[-1] else {}) for key in keys]
        losses = self.judge.losses_from(self.at, self.judged.entries, trials)
        for key, loss in zip(keys, losses, strict=True):
            if not math.isfinite(loss):
                raise CalibrationError(f"the loss of {_text(key)} is {loss}; check the model and the calibration data")
            self.journal.add(key=_text(key), loss=loss)
        step(len(keys))

    def _widths(self, group: Group) -> list[tuple[int, float]]:
        """The legal widths nearest to the ratios, the widest first, with the ratio; of several the lowest."""
        knob, found = Knob.of([group]), dict[int, float]()
        for ratio in sorted(self.ratios):
            found.setdefault(knob.floor((1 - ratio) * group.size + 0.5), ratio)
        return [(width, ratio) for width, ratio in found.items() if width < group.size]

    def _first(self, group: Group) -> int:
        """The segment in which the group is first read."""
        return self._firsts[group.name]

    @cached_property
    def _firsts(self) -> Mapping[str, int]:
        groups = self.program.fact(Eligible).groups
        return {g.name: self.judge.first_segment({place.parameter for place in g.places}) for g in groups}

    def _maps(self, group: Group) -> list[Consumer]:
        """The linear maps that read the group and can be refitted: each with a weight of its own."""
        found = self.dependencies.consumers_of(group) if self.by != NONE else []
        return [consumer for consumer in found if self._readers[consumer.weight] == 1]

    @cached_property
    def _readers(self) -> Mapping[str, int]:
        return new_biases.count_readers(self.program)

    def _move(self, to: int) -> None:
        """Bring both streams to the entry of a segment."""
        for segment in self.judge.segments[self.at : to]:
            for stream in (self.judged, self.fitted):
                stream.entries = stream.advance(segment, self.program.weights)
        self.at = max(self.at, to)

    def _moments(self, maps: Sequence[Consumer]) -> dict[str, Moments]:
        """What maps see in the dense model, from here on as far as the last of them."""
        collector, ahead = Collector(maps), replace(self.fitted)
        wanted = {consumer.node for consumer in maps}
        for segment in self.judge.segments[self.at :]:
            if not wanted:
                break
            here = collector.restricted_to(segment.names)
            ahead.entries = ahead.advance(segment, self.program.weights, collectors=[here] * len(ahead.batch_indices))
            wanted -= segment.names
        return collector.moments

    def _changed(self, group: Group, width: int, moments: Mapping[str, Moments]) -> ChangedWeights:
        """The weights when a group alone has this width, those of its maps refitted where there are moments."""
        rows = {group.name: top(self.program.fact(Scores).by_group[group.name], width)}
        keep = by_parameter(self.dependencies, primes_to_keep(self.dependencies, rows))
        masked = Masked(self.program.weights, keep)
        new = {c.weight: self._refitted(c, keep, moments[c.node]) for c in self._maps(group) if moments}
        return ChangedWeights(Layered((Masked(new, keep), masked)) if new else masked, keep.keys())

    def _refitted(self, consumer: Consumer, keep: KeepByName, moments: Moments) -> Tensor:
        """The weight in its old shape, with new values in the columns that are kept."""
        weight = self.program.weights[consumer.weight]
        matrix, kept = consumer.matrix(weight), columns(keep[consumer.weight][consumer.dim], consumer.taps)
        new = RECONSTRUCTIONS[self.by].refit(matrix, kept, moments, None, None).weight
        return consumer.restore(matrix.index_copy(1, kept, new.to(matrix.dtype))).contiguous()


def _digest(leaves: Iterator[Any]) -> str:
    """A hash of tensors, and of whatever else is among them."""
    found = hashlib.sha256()
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            found.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            found.update(leaf.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            found.update(repr(leaf).encode())
    return found.hexdigest()[:16]
