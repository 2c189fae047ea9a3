"""The pass that refits consumers after a cut, one segment at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.calibration import Calibration, Collector
from graphprune.contracts import Consumer
from graphprune.dependencies import Dependencies
from graphprune.errors import CalibrationError
from graphprune.facts import Refits
from graphprune.methods import Reconstruction, Refitted
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.pipeline import PASSES, Pass
from graphprune.program import Program, Rewritten
from graphprune.progress import progress
from graphprune.segments import Segment, split
from graphprune.statistics import Moments, Statistics
from graphprune.sweep import Stream
from graphprune.weights import Layered, narrow


@PASSES.register("refit")
@dataclass(frozen=True)
class Refit(Pass):
    """Give the weights that contract a cut axis new values, `by` a registered method.

    `statistics`: ``sequential`` takes the inputs that the already pruned and refitted segments before make, ``dense``
    those of the dense model. `damping` is relative to the mean second moment; without it, it is chosen on held-out
    calibration tokens.
    """

    name: ClassVar[str] = "refit"
    needs: ClassVar[tuple[type, ...]] = (Rewritten, Calibration, Statistics)
    makes: ClassVar[tuple[type, ...]] = (Refits,)
    by: str = "least-squares"
    statistics: str = "sequential"
    damping: float | None = None

    def run(self, program: Program) -> Program:
        """The program with refitted weights.

        Raises:
            CalibrationError: if activations are not finite, or there is no such choice of statistics.
        """
        if self.statistics not in ("sequential", "dense"):
            raise CalibrationError(f"statistics are sequential or dense, not {self.statistics!r}")
        walk = _Walk(program, RECONSTRUCTIONS[self.by], self.damping, self.statistics == "dense")
        walk.run()
        refits = Refits(walk.done, walk.skipped, program.weights)
        return program.with_facts(refits, weights=Layered((walk.changed, program.weights)))


@dataclass
class _Walk:
    """One walk over all segments: the dense one shows what a consumer made, the pruned one feeds the next segment."""

    program: Program
    method: Reconstruction
    damping: float | None
    dense: bool
    changed: dict[str, Tensor] = field(default_factory=dict)
    done: dict[str, Refitted] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Refit every consumer of a cut axis."""
        rewritten = self.program.fact(Rewritten)
        consumers = self._consumers(rewritten)
        if not consumers:
            return
        wanted = {consumer.node for consumer in consumers}
        big = split(rewritten.original, {c.node for c in rewritten.original.fact(Dependencies).consumers})
        last = max(i for i, segment in enumerate(big) if wanted & segment.names)
        calibration = self.program.fact(Calibration)
        streams = Stream.start(rewritten.original, calibration), Stream.start(self.program, calibration)
        with progress("refitting", (2 * last + 1) * len(calibration.batches)) as step:
            for i, segment in enumerate(big[: last + 1]):
                here = [consumer for consumer in consumers if consumer.node in segment.names]
                if not here and self._is_alike(segment, streams):
                    exits = streams[0].through(segment, rewritten.original.weights, lambda: step(2))
                    streams[0].entries = streams[1].entries = exits
                else:
                    self._segment(segment, here, streams, step, final=i == last)

    def _is_alike(self, segment: Segment, streams: tuple[Stream, Stream]) -> bool:
        """Does the segment compute the same before and after the cut, on the same values?"""
        if segment.entry is not None and streams[0].entries is not streams[1].entries:
            return False
        keep = self.program.fact(Rewritten).keep
        if any(self.program.name(str(n.target)) in keep for n in segment.reads):
            return False
        pairs = zip(segment.nodes, counterpart(segment, self.program).nodes, strict=True)
        return all(_shape(old) == _shape(new) for old, new in pairs)

    def _segment(
        self,
        segment: Segment,
        here: list[Consumer],
        streams: tuple[Stream, Stream],
        step: Callable[..., None],
        final: bool,
    ) -> None:
        """Look at the dense segment, refit, and run the pruned one."""
        dense, pruned = streams
        seen, held = Collector(here), Collector(here)
        calibration = self.program.fact(Calibration)
        collectors = [held if calibration.held_out(i) else seen for i in range(len(calibration.batches))]
        exits = dense.through(segment, dense.program.weights, step, collectors)
        self._refit(here, seen.moments, held.moments)
        if final:
            return
        weights = Layered((self.changed, self.program.weights))
        pruned.entries = pruned.through(counterpart(segment, self.program), weights, step)
        # Where the stream itself became narrower, the dense side goes on with its own values.
        alike = not self.dense and pruned.entries[0].shape == exits[0].shape
        dense.entries = pruned.entries if alike else exits

    def _consumers(self, rewritten: Rewritten) -> list[Consumer]:
        """The consumers whose columns were cut; those that share a weight are left as they are."""
        found = rewritten.original.fact(Dependencies).consumers
        cut = [c for c in found if c.dim in rewritten.keep.get(c.weight, {})]
        for consumer in cut:
            if sum(c.weight == consumer.weight for c in cut) > 1:
                self.skipped[consumer.weight] = "several layers share it"
        return [c for c in cut if c.weight not in self.skipped]

    def _refit(self, here: list[Consumer], seen: dict[str, Moments], held: dict[str, Moments]) -> None:
        rewritten = self.program.fact(Rewritten)
        for consumer in here:
            kept = _columns(rewritten.keep[consumer.weight][consumer.dim], consumer.taps)
            weight = self._produced(rewritten, consumer)
            result = self.method.refit(weight, kept, seen[consumer.node], held.get(consumer.node), self.damping)
            self.done[consumer.weight] = result
            self.changed[consumer.weight] = consumer.restore(result.weight).contiguous()

    def _produced(self, rewritten: Rewritten, consumer: Consumer) -> Tensor:
        """The consumer's old matrix, all its columns, but only the rows that are left."""
        weight = rewritten.original.weights[consumer.weight]
        for dim, indices in rewritten.keep[consumer.weight].items():
            weight = weight if dim == consumer.dim else narrow(weight, dim, indices)
        return consumer.matrix(weight)


def counterpart(segment: Segment, program: Program) -> Segment:
    """The same segment in the rewritten graph, whose nodes have the same names."""
    nodes = {node.name: node for node in program.graph.nodes}
    entry, left = (nodes[end.name] if end is not None else None for end in (segment.entry, segment.exit))
    return Segment(tuple(nodes[node.name] for node in segment.nodes), entry, left)


def _shape(node: fx.Node) -> str:
    return str([getattr(leaf, "shape", leaf) for leaf in pytree.tree_leaves(node.meta["val"])])


def _columns(kept: Tensor, taps: int) -> Tensor:
    """The columns of a matrix whose indices span `taps` columns each."""
    return (kept[:, None] * taps + torch.arange(taps)).flatten()
