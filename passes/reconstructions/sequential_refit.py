"""The walk of a refit over all segments: see `refit`."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.axes.algebra import Prime, primes
from graphprune.axes.groups import Dependencies
from graphprune.axes.index_sets import Retained
from graphprune.axes.rule import Consumer
from graphprune.display.progress import progress
from graphprune.execution.segments import Segment, split_at_linear_layers
from graphprune.ir.program import Program, Rewritten
from graphprune.ir.weights import Layered, Narrowed, Weights, narrow
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.passes.reconstructions.prefix_reuse import Reuse, reusable
from graphprune.planning.interfaces import Reconstruction, Refitted
from graphprune.planning.plan import kept_beside, primes_to_keep
from graphprune.solvers import new_biases, pivoted_factors
from graphprune.solvers.normal_equations import DEFAULT_DAMPING
from graphprune.statistics.collector import Calibration, Collector
from graphprune.statistics.moments import Moments
from graphprune.statistics.stream import Stream, advance_both, no_progress
from graphprune.support.durable_steps import Step, stage
from graphprune.support.workspace import new_activations

STREAMS = ("dense", "shadow", "pruned")


@dataclass
class Walk:
    """One walk over all segments: those of the original show what a consumer made, the pruned ones feed the next.

    There are streams of the `dense` model, of the original segments on pruned inputs (`shadow`), and of the pruned
    model; the first two are one, but for mixed statistics.
    """

    program: Program
    method: Reconstruction
    consumers: Sequence[Consumer]
    makers: Sequence[Consumer]
    ranks: Mapping[str, int]
    beside: Mapping[str, str]
    damping: float | None
    statistics: str
    mix: float
    keep: Mapping[Prime, Retained] = field(init=False)
    changed: dict[str, Tensor] = field(default_factory=dict)
    wide: dict[str, Tensor] = field(default_factory=dict)  # what makers became, before they are narrowed
    done: dict[str, Refitted] = field(default_factory=dict)

    def run(self) -> None:
        """Refit every consumer."""
        lower = [maker for maker in self.makers if maker.weight in self.ranks]
        wanted = {consumer.node for consumer in (*self.consumers, *lower)}
        if not wanted:
            return
        original, calibration = self.program.fact(Rewritten).original, self.program.fact(Calibration)
        big = split_at_linear_layers(original)
        last = max(i for i, segment in enumerate(big) if wanted & segment.names)
        self.shadow, self.pruned = Stream.start(original, calibration), Stream.start(self.program, calibration)
        self.keep = primes_to_keep(original.fact(Dependencies), self.program.fact(Rewritten).groups)
        self.pruned.entries = self.shadow.entries
        mixed = self.statistics == "mixed"
        self.dense = replace(self.shadow) if mixed else self.shadow
        runs = {"dense": 1, "sequential": 2, "mixed": 3}[self.statistics]
        steps = stage("refit")
        done = steps.finished(last + 1)
        for found in done:
            self._resume(found)
        left = (runs * last + runs - 1 - runs * len(done)) * len(self.dense.batch_indices)
        with progress("refitting", left) as step:
            for i, segment in enumerate(big[len(done) : last + 1], len(done)):
                known = {*self.changed, *self.wide}
                for following in big[i + 1 : i + 2]:
                    self.shadow.prefetch(following)
                here = [consumer for consumer in self.consumers if consumer.node in segment.names]
                if not wanted & segment.names and self._is_alike(segment):
                    exits = self.shadow.advance(segment, self.shadow.program.weights, lambda: step(runs))
                    self.dense.entries = self.shadow.entries = self.pruned.entries = exits
                else:
                    self._segment(segment, here, step, final=i == last)
                self._resume(steps.finish(self._step(known)))
        steps.wait()

    def _step(self, known: Collection[str]) -> Step:
        """What a segment has made, and where the streams stand after it."""
        tensors = {f"changed {name}": t for name, t in self.changed.items() if name not in known}
        tensors |= {f"wide {name}": t for name, t in self.wide.items() if name not in known}
        new = {name: found for name, found in self.done.items() if name not in known}
        tensors |= {f"bias {name}": found.bias for name, found in new.items() if found.bias is not None}
        facts = {name: [found.damping, found.error_before, found.error_after] for name, found in new.items()}
        return Step(facts, tensors, {name: getattr(self, name).entries for name in STREAMS})

    def _resume(self, step: Step) -> None:
        """Go on from where a step ended."""
        for text, tensor in step.tensors.items():
            kind, name = text.split(" ", 1)
            if kind != "bias":
                getattr(self, kind)[name] = tensor
        for name, (damping, before, after) in step.facts.items():
            self.done[name] = Refitted(self.changed[name], damping, before, after, step.tensors.get(f"bias {name}"))
        for name, entries in step.values.items():
            getattr(self, name).entries = entries

    def _is_alike(self, segment: Segment) -> bool:
        """Does the segment compute the same before and after the cut, on the same values?"""
        if segment.entry is not None and not self.dense.entries is self.shadow.entries is self.pruned.entries:
            return False
        if segment.weights(self.program) & self.program.fact(Rewritten).keep.keys():
            return False
        pairs = zip(segment.nodes, counterpart(segment, self.program).nodes, strict=True)
        return all(shape(old) == shape(new) for old, new in pairs)

    def _segment(self, segment: Segment, here: list[Consumer], step: Callable[..., None], final: bool) -> None:
        """Look at the original segment, refit, and run the pruned one."""
        first = [maker for maker in self.makers if maker.node in segment.names]
        if first:
            seen, held, collectors = self._collectors(first, 1.0, {})
            self._look(segment.upstream_of({maker.x for maker in first}), collectors)
            seen.all_reduce()
            held.all_reduce()
            self._remake(first, seen.moments_with_drift, held.moments_with_drift)
        seen, held, collectors = self._collectors(here, self.mix, self.beside)
        reuse = None if first or final else self._reuse(segment, here)
        if reuse is not None:
            self._short(reuse, here, seen, held, collectors, step)
            return
        exits, dense_exits = self._look(segment, collectors, step)
        seen.all_reduce()
        held.all_reduce()
        self._refit(here, seen.moments_with_drift, held.moments_with_drift)
        if final:
            return
        self.shadow.entries = exits
        if self.statistics != "dense":
            self.pruned.entries = self.pruned.advance(counterpart(segment, self.program), self._refitted, step)
            self.shadow.entries = self._filled(segment, exits)
        if self.dense is not self.shadow:
            self.dense.entries = dense_exits

    @property
    def _refitted(self) -> Weights:
        """The weights of the pruned model, as far as it is refitted."""
        return Layered((self.changed, self.program.weights))

    def _reuse(self, segment: Segment, here: list[Consumer]) -> Reuse | None:
        """How the pruned segment can go on from values of the original, if both start from the same ones."""
        if not here or self.statistics != "sequential" or self.shadow.entries is not self.pruned.entries:
            return None
        return reusable(self.program, segment, here, self.keep)

    def _short(
        self, reuse: Reuse, here: list[Consumer], seen: Collector, held: Collector, collectors: Sequence[Collector],
        step: Callable[..., None],
    ) -> None:  # fmt: skip
        """Look at the first part of the original segment, refit, and run the rest of the pruned one."""
        narrow = {name: new_activations() for name in reuse.kept}

        def keep(found: Mapping[str, Tensor]) -> None:
            for name, place in narrow.items():
                place.append(reuse.narrowed(name, found[name]))

        self.shadow.advance(reuse.early, self.shadow.program.weights, step, collectors, keep, narrow)
        seen.all_reduce()
        held.all_reduce()
        self._refit(here, seen.moments_with_drift, held.moments_with_drift)
        exits = self.pruned.advance(counterpart(reuse.rest, self.program), self._refitted, step, known=narrow)
        self.dense.entries = self.shadow.entries = self.pruned.entries = exits

    def _collectors(
        self, here: list[Consumer], mix: float, beside: Mapping[str, str]
    ) -> tuple[Collector, Collector, list[Collector]]:
        """One for what is fitted, one for what is held out, and which of them each batch goes to."""
        original, apart = self.program.fact(Rewritten).original, self.dense is not self.shadow
        weights = {c.weight: original.weights[c.weight] for c in here} if apart else {}
        added = {c.node: beside[c.node] for c in here if c.node in beside}
        seen, held = (Collector(here, mix=mix, weights=weights, residual=added) for _ in range(2))
        calibration = self.program.fact(Calibration)
        return seen, held, [held if calibration.held_out(i) else seen for i in self.dense.batch_indices]

    def _remake(self, makers: list[Consumer], seen: dict[str, Moments], held: dict[str, Moments]) -> None:
        """Refit maps to the outputs of the dense model: all rows, of which the pruned model has some."""
        rewritten = self.program.fact(Rewritten)
        for maker in makers:
            name, weight = maker.weight, maker.matrix(rewritten.original.weights[maker.weight])
            every = torch.arange(weight.shape[1])
            if name in self.ranks:
                self._reduce(maker, seen[maker.node], held.get(maker.node))
                continue
            method, there = RECONSTRUCTIONS["least-squares"], seen[maker.node].gram.device
            args = seen[maker.node], held.get(maker.node), self.damping
            found = method.refit(weight.to(there), every.to(there), *args)
            self.done[name] = replace(found, weight=found.weight.cpu())
            self.wide[name] = maker.restore(self.done[name].weight).contiguous()
            self.changed[name] = Narrowed(self.wide, rewritten.keep)[name]

    def _look(
        self, segment: Segment, collectors: Sequence[Collector], step: Callable[..., None] = no_progress
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """The exits on pruned inputs and the dense ones; refits see the former, and aim at the latter."""
        remade = Layered((self.wide, self.shadow.program.weights))
        if self.dense is self.shadow:
            exits = self.shadow.advance(segment, remade, step, collectors)
            return exits, exits
        return advance_both(self.dense, self.shadow, segment, remade, collectors, step)

    def _filled(self, segment: Segment, exits: Sequence[Any]) -> Sequence[Any]:
        """The pruned entries of the next segment; where they are narrower, in the places of those that are left."""
        rewritten, pruned = self.program.fact(Rewritten), self.pruned.entries
        if segment.exit is None or not isinstance(exits[0], Tensor) or pruned[0].shape == exits[0].shape:
            return pruned
        dependencies = rewritten.original.fact(Dependencies)
        keep = self.keep
        dims: Any = dependencies.values[segment.exit.name]
        cut = [dim for dim, axis in enumerate(dims) if any(p in keep for p in primes(axis))]
        indices = {dim: kept_beside(dims, dim, keep) for dim in reversed(cut)}
        filled = new_activations()
        for wide, small in zip(exits, pruned, strict=True):
            filled.append(fill(wide, small, indices))
        return filled

    def _refit(self, here: list[Consumer], seen: dict[str, Moments], held: dict[str, Moments]) -> None:
        rewritten = self.program.fact(Rewritten)
        for consumer in here:
            kept = columns(rewritten.keep[consumer.weight][consumer.dim], consumer.taps)
            weight = self._produced(rewritten, consumer, rewritten.original.weights[consumer.weight])
            moments = [self._made(rewritten, consumer, found.get(consumer.node)) for found in (seen, held)]
            assert moments[0] is not None
            result = self._fit(consumer.weight, weight, kept, moments[0], moments[1])
            self.done[consumer.weight] = result
            self.changed[consumer.weight] = consumer.restore(result.weight).contiguous()
            if result.bias is not None:
                name = new_biases.bias_name(consumer)
                self.changed[name] = self.program.weights[name] + result.bias

    def _reduce(self, maker: Consumer, seen: Moments, held: Moments | None) -> None:
        """Refit a map at its rank: the rows that are left; in the wide matrix the others stay."""
        rewritten, name = self.program.fact(Rewritten), maker.weight
        whole = rewritten.original.weights[name]
        weight, moments = self._produced(rewritten, maker, whole), self._made(rewritten, maker, seen)
        assert moments is not None
        every = torch.arange(weight.shape[1])
        self.done[name] = self._fit(name, weight, every, moments, self._made(rewritten, maker, held))
        self.changed[name] = maker.restore(self.done[name].weight).contiguous()
        self.wide[name] = fill(whole, self.changed[name], rewritten.keep.get(name, {}))

    def _fit(self, name: str, weight: Tensor, kept: Tensor, seen: Moments, held: Moments | None) -> Refitted:
        """New values for a matrix of which these columns are kept, solved for where the sums are."""
        there = seen.gram.device
        found = self._solve(name, weight.to(there), kept.to(there), seen, held)
        return replace(found, weight=found.weight.cpu(), bias=None if found.bias is None else found.bias.cpu())

    def _solve(self, name: str, weight: Tensor, kept: Tensor, seen: Moments, held: Moments | None) -> Refitted:
        if name not in self.ranks:
            return self.method.refit(weight, kept, seen, held, self.damping)
        damping = DEFAULT_DAMPING if self.damping is None else self.damping  # to try many takes long, and gains nothing
        return pivoted_factors.reconstruct_low_rank(
            weight, kept, self.ranks[name], seen, held, damping, pivoted_factors.reduced_rank_regression
        )[1]

    def _made(self, rewritten: Rewritten, consumer: Consumer, moments: Moments | None) -> Moments | None:
        """Moments with the drift of those outputs only that are left."""
        if moments is None or moments.drift is None:
            return moments
        count, columns = moments.drift.cross.shape
        numbers = consumer.restore(torch.arange(count)[:, None].expand(count, columns).contiguous())
        return replace(moments, drift=moments.drift.rows(self._produced(rewritten, consumer, numbers)[:, 0]))

    def _produced(self, rewritten: Rewritten, consumer: Consumer, weight: Tensor) -> Tensor:
        """The consumer's matrix, all its columns, but only the rows that are left."""
        for dim, indices in rewritten.keep.get(consumer.weight, {}).items():
            weight = weight if dim == consumer.dim else narrow(weight, dim, indices)
        return consumer.matrix(weight)


def fill(wide: Tensor, small: Tensor, indices: Mapping[int, Tensor]) -> Tensor:
    """The wide value with the numbers of the small one at what is kept of some dimensions, the last one first."""
    places = torch.arange(wide.numel()).view(wide.shape)
    for dim, kept in indices.items():
        places = narrow(places, dim, kept)
    return wide.flatten().index_put((places.flatten(),), small.flatten()).view(wide.shape)


def counterpart(segment: Segment, program: Program) -> Segment:
    """The same segment in the rewritten graph, whose nodes have the same names."""
    nodes = {node.name: node for node in program.graph.nodes}
    entry, left = (nodes[end.name] if end is not None else None for end in (segment.entry, segment.exit))
    return Segment(tuple(nodes[node.name] for node in segment.nodes), entry, left)


def shape(node: fx.Node) -> str:
    return str([getattr(leaf, "shape", leaf) for leaf in pytree.tree_leaves(node.meta["val"])])


def columns(kept: Tensor, taps: int) -> Tensor:
    """The columns of a matrix whose indices span `taps` columns each."""
    return (kept[:, None] * taps + torch.arange(taps)).flatten()
