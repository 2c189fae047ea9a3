"""All calibration batches, carried through the graph one segment at a time."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from graphprune.execution.segments import Constants, Segment, load_weights, run, to_device
from graphprune.ir.prefetch import Prefetched
from graphprune.ir.program import Program
from graphprune.ir.weights import Weights
from graphprune.statistics.collector import Calibration, Collector, matmul_autocast, token_mask
from graphprune.support import distributed
from graphprune.support.workspace import new_activations

NOTHING: Mapping[str, Any] = MappingProxyType({})


def no_progress(count: int = 1) -> None:
    """No progress is shown."""


@dataclass
class Stream:
    """Where every batch of this process stands: the activation that enters the next segment.

    `numbers` are those of its batches among all. `real` says for each which tokens are no padding (see `attended`).
    """

    program: Program
    calibration: Calibration
    batch_indices: Sequence[int]
    token_masks: Sequence[Tensor | None]
    entries: Sequence[Any]
    constants: Constants

    @classmethod
    def start(cls, program: Program, calibration: Calibration) -> "Stream":
        """All batches at the inputs of the graph."""
        numbers = distributed.batches_of_process(len(calibration.batches))
        program = program.with_facts(weights=Prefetched(program.weights, calibration.device))
        made = Constants(program, device=calibration.device)
        real = [token_mask(program, calibration.batches[n]) for n in numbers]
        return cls(program, calibration, numbers, real, [None] * len(numbers), made)

    def advance(
        self, segment: Segment, weights: Weights, step: Callable[[], None] = no_progress,
        collectors: Sequence[Collector] = (), look: Callable[[Mapping[str, Tensor]], None] | None = None,
        watch: Collection[str] = (), known: Mapping[str, Sequence[Any]] = NOTHING,
    ) -> Sequence[Any]:  # fmt: skip
        """The exit values of all batches; `step` is called after each.

        Each batch's collector sees it, and `look` the values of the nodes in `watch`. `known` has values that the
        segment need not make.
        """
        loaded = self.load(segment, weights)
        exits = new_activations()
        for i in range(len(self.batch_indices)):
            wanted = {*watch, *(collectors[i].watched if collectors else ())}
            left, seen = self.run_batch(i, segment, loaded, wanted, {name: found[i] for name, found in known.items()})
            if collectors:
                collectors[i].add(seen, real=self.token_masks[i])
            if look is not None:
                look(seen)
            if segment.exit is not None:
                exits.append(left)
            step()
        return exits

    @torch.no_grad()
    def run_batch(
        self, batch: int, segment: Segment, loaded: Weights, watch: Collection[str],
        known: Mapping[str, Any] = NOTHING,
    ) -> tuple[Any, dict[str, Tensor]]:  # fmt: skip
        """The exit value of one batch, and the values of the nodes in `watch`."""
        device = self.calibration.device
        entry = to_device(self.entries[batch], device)
        given = self.constants.of(self.calibration.batches[self.batch_indices[batch]])
        given |= {name: to_device(value, device) for name, value in known.items()}
        with matmul_autocast(self.calibration.autocast, device):
            return run(segment, self.program, loaded, given, entry, watch)

    def load(self, segment: Segment, weights: Weights) -> dict[str, Tensor]:
        """The weights of one segment, read once for all batches."""
        return load_weights(segment, self.program, weights, self.calibration.device)

    def prefetch(self, segment: Segment) -> None:
        """Begin to read the program's own weights of a segment that comes later."""
        if isinstance(self.program.weights, Prefetched):
            self.program.weights.prefetch(segment.weights(self.program) & self.program.weights.keys())


def advance_both(
    dense: Stream, other: Stream, segment: Segment, weights: Weights, collectors: Sequence[Collector],
    step: Callable[..., None] = no_progress,
) -> tuple[Sequence[Any], Sequence[Any]]:  # fmt: skip
    """The exit values of a segment on another stream, with `weights`, and on the dense one; each batch's collector sees
    what the former makes, and aims at the latter."""
    loaded, changed = dense.load(segment, dense.program.weights), other.load(segment, weights)
    exits, dense_exits = new_activations(), new_activations()
    for i, collector in enumerate(collectors):
        left, aims = dense.run_batch(i, segment, loaded, collector.watched)
        if segment.exit is not None:
            dense_exits.append(left)
        left, seen = other.run_batch(i, segment, changed, collector.watched)
        if segment.exit is not None:
            exits.append(left)
        collector.add(seen, aims, dense.token_masks[i])
        step(2)
    return exits, dense_exits
