"""All calibration batches, carried through the graph one segment at a time."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphprune.calibration import Calibration, Collector, attended, products
from graphprune.program import Program
from graphprune.segments import Segment, constants, run
from graphprune.weights import Weights


def unseen(count: int = 1) -> None:
    """No progress is shown."""


@dataclass
class Stream:
    """Where every batch stands: its constants, and the activation that enters the next segment.

    `real` says for every batch which tokens are no padding (see `attended`); with `autocast`, matrices are multiplied
    in bfloat16.
    """

    program: Program
    known: Sequence[Mapping[str, Any]]
    real: Sequence[Tensor | None]
    entries: list[Any]
    autocast: bool = False

    @classmethod
    def start(cls, program: Program, calibration: Calibration) -> "Stream":
        """All batches at the inputs of the graph."""
        with torch.no_grad():
            known = [constants(program, leaves) for leaves in calibration.batches]
        real = [attended(program, leaves) for leaves in calibration.batches]
        return cls(program, known, real, [None] * len(known), calibration.autocast)

    def through(
        self, segment: Segment, weights: Weights, step: Callable[[], None] = unseen,
        collectors: Sequence[Collector] = (),
    ) -> list[Any]:  # fmt: skip
        """The exit values of all batches; each batch's collector sees it, and `step` is called after each."""
        loaded = self.load(segment, weights)
        exits = []
        for i in range(len(self.known)):
            left, seen = self.one(i, segment, loaded, collectors[i].watched if collectors else ())
            if collectors:
                collectors[i].add(seen, real=self.real[i])
            exits.append(left)
            step()
        return exits

    @torch.no_grad()
    def one(
        self, batch: int, segment: Segment, loaded: Weights, watch: Collection[str]
    ) -> tuple[Any, dict[str, Tensor]]:
        """The exit value of one batch, and the values of the nodes in `watch`."""
        with products(self.autocast):
            return run(segment, self.program, loaded, self.known[batch], self.entries[batch], watch)

    def load(self, segment: Segment, weights: Weights) -> dict[str, Tensor]:
        """The weights of one segment, read once for all batches."""
        names = {self.program.name(str(n.target)) for n in segment.reads}
        return {name: weights[name] for name in names if name in weights}


def compare(
    dense: Stream, other: Stream, segment: Segment, weights: Weights, collectors: Sequence[Collector],
    step: Callable[..., None] = unseen,
) -> tuple[list[Any], list[Any]]:  # fmt: skip
    """The exit values of a segment on another stream, with `weights`, and on the dense one; each batch's collector sees
    what the former makes, and aims at the latter."""
    loaded, changed = dense.load(segment, dense.program.weights), other.load(segment, weights)
    exits, dense_exits = [], []
    for i, collector in enumerate(collectors):
        left, aims = dense.one(i, segment, loaded, collector.watched)
        dense_exits.append(left)
        left, seen = other.one(i, segment, changed, collector.watched)
        exits.append(left)
        collector.add(seen, aims, dense.real[i])
        step(2)
    return exits, dense_exits
