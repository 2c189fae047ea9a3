"""Stream of all calibration batches through the graph, one segment at a time."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from graphprune.display.progress import no_progress
from graphprune.execution.segments import NO_TAPS, Constants, Segment, Taps, load_weights, run, to_device
from graphprune.ir.prefetch import Prefetched
from graphprune.ir.program import Program
from graphprune.ir.weights import Weights
from graphprune.statistics.collector import Calibration, Collector, matmul_autocast, token_mask
from graphprune.support import distributed
from graphprune.support.workspace import new_activations

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass
class Stream:
    """State of every batch of this process: the activation that enters the next segment.

    `batch_indices` are the indices of its batches among all; `token_masks` mark their tokens that are not padding.
    """

    program: Program
    calibration: Calibration
    batch_indices: Sequence[int]
    token_masks: Sequence[Tensor | None]
    entries: Sequence[Any]
    constants: Constants

    @classmethod
    def start(cls, program: Program, calibration: Calibration, numbers: Sequence[int] | None = None) -> "Stream":
        """Stream with batches at the inputs of the graph: those of these numbers, or all of this process."""
        numbers = distributed.batches_of_process(len(calibration.batches)) if numbers is None else numbers
        program = program.with_facts(weights=Prefetched(program.weights, calibration.device))
        made = Constants(program, device=calibration.device)
        real = [token_mask(program, calibration.batches[n]) for n in numbers]
        return cls(program, calibration, numbers, real, [None] * len(numbers), made)

    def advance(
        self, segment: Segment, weights: Weights, step: Callable[[], None] = no_progress,
        collectors: Sequence[Collector] = (), look: Callable[[Mapping[str, Tensor]], None] | None = None,
        watch: Collection[str] = (), known: Mapping[str, Sequence[Any]] = NOTHING,
    ) -> Sequence[Any]:  # fmt: skip
        """Run a segment on all batches; return their exit values, and call `step` after each.

        The collector of each batch receives its values, and `look` those of the nodes in `watch`. `known` has values
        that the segment need not compute.
        """
        loaded = self.load(segment, weights)
        exits = new_activations()
        for i in range(len(self.batch_indices)):
            watched = {*watch, *(collectors[i].watched if collectors else ())}
            inputs = {name: values[i] for name, values in known.items()}
            exit_value, seen = self.run_batch(i, segment, loaded, watched, inputs)
            if collectors:
                collectors[i].add(seen, real=self.token_masks[i])
            if look is not None:
                look(seen)
            if segment.exit is not None:
                exits.append(exit_value)
            step()
        return exits

    @torch.no_grad()
    def run_batch(
        self, batch: int, segment: Segment, loaded: Weights, watch: Collection[str],
        known: Mapping[str, Any] = NOTHING,
    ) -> tuple[Any, dict[str, Tensor]]:  # fmt: skip
        """Run a segment on one batch; return its exit value, and the values of the nodes in `watch`."""
        entry = to_device(self.entries[batch], self.calibration.device)
        return self.run_from(entry, batch, segment, loaded, watch, known)

    def run_from(
        self, entry: Any, batch: int, segment: Segment, loaded: Weights, watch: Collection[str],
        known: Mapping[str, Any] = NOTHING, taps: Taps = NO_TAPS,
    ) -> tuple[Any, dict[str, Tensor]]:  # fmt: skip
        """Run a segment on one batch, with derivatives where they are enabled, from another `entry` than the stored."""
        device = self.calibration.device
        values = self.constants.of(self.calibration.batches[self.batch_indices[batch]])
        values |= {name: to_device(value, device) for name, value in known.items()}
        with matmul_autocast(self.calibration.autocast, device):
            return run(segment, self.program, loaded, values, entry, watch, taps)

    def load(self, segment: Segment, weights: Weights) -> dict[str, Tensor]:
        """Read the weights of one segment, once for all batches."""
        return load_weights(segment, self.program, weights, self.calibration.device)

    def prefetch(self, segment: Segment) -> None:
        """Start to read the program's own weights of a later segment."""
        if isinstance(self.program.weights, Prefetched):
            self.program.weights.prefetch(segment.weights(self.program) & self.program.weights.keys())


def advance_both(
    dense: Stream, other: Stream, segment: Segment, weights: Weights, collectors: Sequence[Collector],
    step: Callable[..., None] = no_progress, early: Segment | None = None,
    look: Callable[[Mapping[str, Tensor]], None] | None = None, watch: Collection[str] = (),
) -> tuple[Sequence[Any], Sequence[Any]]:  # fmt: skip
    """Run a segment on another stream, with `weights`, and on the dense one; return the exit values of both.

    The collector of each batch receives the values of the former, and those of the latter as reference. The other
    stream runs the `early` part alone, if there is one; `look` receives its values of the nodes in `watch`.
    """
    part = early or segment
    loaded, changed = dense.load(segment, dense.program.weights), other.load(part, weights)
    exits, dense_exits = new_activations(), new_activations()
    for i, collector in enumerate(collectors):
        exit_value, reference = dense.run_batch(i, segment, loaded, collector.watched)
        if segment.exit is not None:
            dense_exits.append(exit_value)
        exit_value, seen = other.run_batch(i, part, changed, {*collector.watched, *watch})
        if part.exit is not None:
            exits.append(exit_value)
        if look is not None:
            look(seen)
        collector.add(seen, reference, dense.token_masks[i])
        step(2)
    return exits, dense_exits
