"""The refit of all segments, one after the other: see `refit`."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.axes.algebra import Prime, primes
from graphprune.axes.groups import Dependencies
from graphprune.axes.index_sets import Retained
from graphprune.axes.rule import Consumer
from graphprune.display.progress import no_progress, progress
from graphprune.execution.segments import Segment, split_at_linear_layers
from graphprune.ir.program import Program, Rewritten
from graphprune.ir.weights import Layered, Narrowed, Weights, narrow
from graphprune.passes.low_rank.allocate_ranks import output_root
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.passes.reconstructions.prefix_reuse import Reuse, reusable
from graphprune.planning.interfaces import Reconstruction, Refitted
from graphprune.planning.plan import indices_along, primes_to_keep
from graphprune.solvers import new_biases, pivoted_factors
from graphprune.solvers.normal_equations import DEFAULT_DAMPING
from graphprune.statistics.collector import Calibration, Collector
from graphprune.statistics.moments import Moments
from graphprune.statistics.stream import Stream, advance_both
from graphprune.support.durable_steps import Step, stage
from graphprune.support.workspace import new_activations

NONE: Mapping[str, Tensor] = MappingProxyType({})
STREAMS = ("dense", "shadow", "pruned")


@dataclass
class Walk:
    """One walk over all segments: the original ones give the outputs of consumers, the pruned ones the next inputs.

    There are streams of the `dense` model, of the original segments on pruned inputs (`shadow`), and of the `pruned`
    model; the first two are the same, except for mixed statistics. `branches` are layers with all their columns that
    are refitted like consumers after the first change. `addends` are the values that are added to the outputs of both,
    by node. `weighed` are the layers with known gradients at their outputs, by weight.
    """

    program: Program
    method: Reconstruction
    consumers: Sequence[Consumer]
    branches: Sequence[Consumer]
    producers: Sequence[Consumer]
    ranks: Mapping[str, int]
    addends: Mapping[str, str]
    damping: float | None
    statistics: str
    mix: float
    relative: bool
    weighed: Mapping[str, Consumer]
    keep: Mapping[Prime, Retained] = field(init=False)
    changed: dict[str, Tensor] = field(default_factory=dict)
    wide: dict[str, Tensor] = field(default_factory=dict)  # refitted weights of producers before they are narrowed
    done: dict[str, Refitted] = field(default_factory=dict)

    def run(self, tables: Mapping[str, Tensor] = NONE) -> None:
        """Refit every consumer; `tables` are weights of the original that have new values from the start."""
        self.wide.update(tables)
        self.changed.update({name: Narrowed(tables, self.program.fact(Rewritten).keep)[name] for name in tables})
        lower = [producer for producer in self.producers if producer.weight in self.ranks]
        lower += [branch for branch in self.branches if branch.weight in self.ranks]
        changed = {layer.node for layer in (*self.consumers, *lower)}
        refitted = changed | {branch.node for branch in self.branches}
        if not refitted:
            return
        original, calibration = self.program.fact(Rewritten).original, self.program.fact(Calibration)
        big = split_at_linear_layers(original)
        last = max(i for i, segment in enumerate(big) if refitted & segment.names)
        self.shadow, self.pruned = Stream.start(original, calibration), Stream.start(self.program, calibration)
        self.keep = primes_to_keep(original.fact(Dependencies), self.program.fact(Rewritten).groups)
        self.pruned.entries = self.shadow.entries
        mixed = self.statistics == "mixed"
        self.dense = replace(self.shadow) if mixed else self.shadow
        runs = {"dense": 1, "sequential": 2, "mixed": 3}[self.statistics]
        steps = stage("refit")
        done = steps.finished(last + 1)
        for finished in done:
            self._resume(finished)
        remaining = (runs * last + runs - 1 - runs * len(done)) * len(self.dense.batch_indices)
        with progress("refitting", remaining) as step:
            for i, segment in enumerate(big[len(done) : last + 1], len(done)):
                known = {*self.changed, *self.wide}
                for following in big[i + 1 : i + 2]:
                    self.shadow.prefetch(following)
                in_segment = [c for c in (*self.consumers, *self.branches) if c.node in segment.names]
                if not changed & segment.names and self._is_alike(segment):
                    exits = self.shadow.advance(segment, self.shadow.program.weights, lambda: step(runs))
                    self.dense.entries = self.shadow.entries = self.pruned.entries = exits
                else:
                    self._segment(segment, in_segment, step, final=i == last)
                self._resume(steps.finish(self._step(known)))
        steps.wait()

    def _step(self, known: Collection[str]) -> Step:
        """The weights refitted since those `known`, and the entries of the streams."""
        known = {*known}
        alone = self.changed.keys() - self.wide.keys() - known  # the others follow from their wide weights
        tensors = {f"changed {name}": self.changed[name] for name in sorted(alone)}
        tensors |= {f"wide {name}": t for name, t in self.wide.items() if name not in known}
        new = {name: refit for name, refit in self.done.items() if name not in known}
        tensors |= {f"bias {name}": refit.bias for name, refit in new.items() if refit.bias is not None}
        facts = {name: [refit.damping, refit.error_before, refit.error_after] for name, refit in new.items()}
        return Step(facts, tensors, {name: getattr(self, name).entries for name in STREAMS})

    def _resume(self, step: Step) -> None:
        """Continue after a finished step."""
        for text, tensor in step.tensors.items():
            kind, name = text.split(" ", 1)
            if kind == "changed":
                self.changed[name] = tensor
            elif kind == "wide":
                self.wide[name] = tensor
                self.changed[name] = Narrowed(self.wide, self.program.fact(Rewritten).keep)[name]
        for name, (damping, before, after) in step.facts.items():
            self.done[name] = Refitted(self.changed[name], damping, before, after, step.tensors.get(f"bias {name}"))
        for name, entries in step.values.items():
            getattr(self, name).entries = entries

    def _is_alike(self, segment: Segment) -> bool:
        """Whether the segment computes the same values before and after the cut."""
        if segment.entry is not None and not self.dense.entries is self.shadow.entries is self.pruned.entries:
            return False
        if segment.weights(self.program) & {*self.program.fact(Rewritten).keep, *self.wide}:
            return False
        pairs = zip(segment.nodes, counterpart(segment, self.program).nodes, strict=True)
        return all(shape(old) == shape(new) for old, new in pairs)

    def _segment(self, segment: Segment, consumers: list[Consumer], step: Callable[..., None], final: bool) -> None:
        """Run the original segment, refit its consumers, and run the pruned segment."""
        producers = [producer for producer in self.producers if producer.node in segment.names]
        if producers:
            fitted, held, collectors = self._collectors(producers, 1.0, {})
            self._collect(segment.upstream_of({producer.x for producer in producers}), collectors)
            fitted.all_reduce()
            held.all_reduce()
            self._refit_producers(producers, fitted.moments_with_drift, held.moments_with_drift)
        fitted, held, collectors = self._collectors(consumers, self.mix, self.addends)
        reuse = None if final else self._reuse(segment, consumers)
        if reuse is not None:
            self._run_reusing(segment, reuse, consumers, fitted, held, collectors, step)
            return
        exits, dense_exits = self._collect(segment, collectors, step)
        fitted.all_reduce()
        held.all_reduce()
        self._refit(consumers, fitted.moments_with_drift, held.moments_with_drift)
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
        """The weights of the pruned model, with the refits so far."""
        return Layered((self.changed, self.program.weights))

    def _reuse(self, segment: Segment, consumers: list[Consumer]) -> Reuse | None:
        """The parts of a segment with the same entries in the original and the pruned model; None without reuse."""
        if not consumers or self.statistics == "dense" or self.shadow.entries is not self.pruned.entries:
            return None
        return reusable(self.program, segment, consumers, self.keep)

    def _run_reusing(
        self, segment: Segment, reuse: Reuse, consumers: list[Consumer], fitted: Collector, held: Collector,
        collectors: Sequence[Collector], step: Callable[..., None],
    ) -> None:  # fmt: skip
        """Run the first part of the original segment, refit, and run the rest of the pruned segment."""
        narrow = {name: new_activations() for name in reuse.retained}

        def store(values: Mapping[str, Tensor]) -> None:
            for name, activations in narrow.items():
                activations.append(reuse.narrowed(name, values[name]))

        weights, dense_exits = Layered((self.wide, self.shadow.program.weights)), None
        if self.dense is self.shadow:
            self.shadow.advance(reuse.early, weights, step, collectors, store, narrow)
        else:
            _, dense_exits = advance_both(
                self.dense, self.shadow, segment, weights, collectors, step, reuse.early, store, narrow
            )
        fitted.all_reduce()
        held.all_reduce()
        self._refit(consumers, fitted.moments_with_drift, held.moments_with_drift)
        exits = self.pruned.advance(counterpart(reuse.rest, self.program), self._refitted, step, known=narrow)
        self.shadow.entries = self.pruned.entries = exits
        self.dense.entries = exits if dense_exits is None else dense_exits

    def _collectors(
        self, consumers: list[Consumer], mix: float, addends: Mapping[str, str]
    ) -> tuple[Collector, Collector, list[Collector]]:
        """The collectors of the fitted and of the held-out batches, and that of every batch."""
        original, apart = self.program.fact(Rewritten).original, self.dense is not self.shadow
        weights = {c.weight: original.weights[c.weight] for c in consumers} if apart else {}
        added = {c.node: addends[c.node] for c in consumers if c.node in addends}
        fitted, held = (
            Collector(consumers, mix=mix, weights=weights, residual=added, relative=self.relative) for _ in range(2)
        )
        calibration = self.program.fact(Calibration)
        return fitted, held, [held if calibration.held_out(i) else fitted for i in self.dense.batch_indices]

    def _refit_producers(self, producers: list[Consumer], fitted: dict[str, Moments], held: dict[str, Moments]) -> None:
        """Refit all rows of producers, of which the pruned model retains some, to the outputs of the dense model."""
        rewritten = self.program.fact(Rewritten)
        for producer in producers:
            name, weight = producer.weight, producer.matrix(rewritten.original.weights[producer.weight])
            every = torch.arange(weight.shape[1])
            if name in self.ranks:
                self._reduce(producer, fitted[producer.node], held.get(producer.node))
                continue
            method, device = RECONSTRUCTIONS["least-squares"], fitted[producer.node].gram.device
            args = fitted[producer.node], held.get(producer.node), self.damping
            refitted = method.refit(weight.to(device), every.to(device), *args)
            self.done[name] = replace(refitted, weight=refitted.weight.cpu())
            self.wide[name] = producer.restore(self.done[name].weight).contiguous()
            self.changed[name] = Narrowed(self.wide, rewritten.keep)[name]

    def _collect(
        self, segment: Segment, collectors: Sequence[Collector], step: Callable[..., None] = no_progress
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """The exits on pruned inputs, and the dense ones; collectors gather the former and the error to the latter."""
        weights = Layered((self.wide, self.shadow.program.weights))
        if self.dense is self.shadow:
            exits = self.shadow.advance(segment, weights, step, collectors)
            return exits, exits
        return advance_both(self.dense, self.shadow, segment, weights, collectors, step)

    def _filled(self, segment: Segment, exits: Sequence[Any]) -> Sequence[Any]:
        """The pruned entries of the next segment; narrow ones fill the retained indices of the original exits."""
        rewritten, pruned = self.program.fact(Rewritten), self.pruned.entries
        if segment.exit is None or not isinstance(exits[0], Tensor) or pruned[0].shape == exits[0].shape:
            return pruned
        dependencies = rewritten.original.fact(Dependencies)
        keep = self.keep
        dims: Any = dependencies.values[segment.exit.name]
        cut = [dim for dim, axis in enumerate(dims) if any(p in keep for p in primes(axis))]
        indices = {dim: indices_along(dims, dim, keep) for dim in reversed(cut)}
        filled = new_activations()
        for wide, small in zip(exits, pruned, strict=True):
            filled.append(fill(wide, small, indices))
        return filled

    def _refit(self, consumers: list[Consumer], fitted: dict[str, Moments], held: dict[str, Moments]) -> None:
        rewritten = self.program.fact(Rewritten)
        for members in stacks(consumers):
            self._refit_stack(members, fitted, held)
        for consumer in (c for c in consumers if c.member is None):
            retained = self._retained(rewritten, consumer)
            weight = self._rows(rewritten, consumer, rewritten.original.weights[consumer.weight])
            moments = [self._of_rows(rewritten, consumer, sums.get(consumer.node)) for sums in (fitted, held)]
            assert moments[0] is not None
            result = self._fit(consumer.weight, weight, retained, moments[0], moments[1])
            self.done[consumer.weight] = result
            self.changed[consumer.weight] = consumer.restore(result.weight).contiguous()
            if result.bias is not None:
                name = new_biases.bias_name(consumer)
                self.changed[name] = self.program.weights[name] + result.bias

    def _retained(self, rewritten: Rewritten, consumer: Consumer) -> Tensor:
        """The retained columns of the matrix of a consumer."""
        kept = rewritten.keep.get(consumer.weight, {}).get(consumer.dim)
        every = torch.arange(rewritten.original.shapes()[consumer.weight][consumer.dim])
        return consumer.columns(every if kept is None else kept)

    def _refit_stack(
        self, members: Sequence[Consumer], fitted: Mapping[str, Moments], held: Mapping[str, Moments]
    ) -> None:
        """Refit every member of a stack by the rows that it multiplies; one without any is unchanged."""
        rewritten, name = self.program.fact(Rewritten), members[0].weight
        whole, kept = rewritten.original.weights[name], rewritten.keep[name][members[0].dim]
        parts, results, dim = list[Tensor](), list[tuple[float, Refitted]](), 0
        for consumer, member in ((c, c.member) for c in members if c.member is not None):
            dim = member.dim
            retained = kept if kept.dim() == 1 else kept.select(dim, member.index).flatten()
            weight, own, other = self._rows(rewritten, consumer, whole), fitted[consumer.key], held.get(consumer.key)
            if own.squares.any():
                damping = rare_damping(own, self.damping)
                result = self._fit(
                    name, weight, retained, own, other if other and other.squares.any() else None, damping
                )
                results.append((own.tokens, result))
                parts.append(consumer.restore(result.weight))
            else:
                parts.append(consumer.restore(weight[:, retained]))
        self.changed[name] = torch.stack(parts, dim).contiguous()
        self.done[name] = average(self.changed[name], results)

    def _reduce(self, producer: Consumer, fitted: Moments, held: Moments | None) -> None:
        """Refit the retained rows of a producer at its rank; in the wide matrix, the other rows are unchanged."""
        rewritten, name = self.program.fact(Rewritten), producer.weight
        whole = rewritten.original.weights[name]
        weight, moments = self._rows(rewritten, producer, whole), self._of_rows(rewritten, producer, fitted)
        assert moments is not None
        every = torch.arange(weight.shape[1])
        self.done[name] = self._fit(name, weight, every, moments, self._of_rows(rewritten, producer, held))
        self.changed[name] = producer.restore(self.done[name].weight).contiguous()
        self.wide[name] = fill(whole, self.changed[name], rewritten.keep.get(name, {}))

    def _fit(
        self, name: str, weight: Tensor, retained: Tensor, fitted: Moments, held: Moments | None,
        damping: float | None = None,
    ) -> Refitted:  # fmt: skip
        """New values of the retained columns of a matrix, solved for on the device of the moments."""
        device = fitted.gram.device
        damping = self.damping if damping is None else damping
        refitted = self._solve(name, weight.to(device), retained.to(device), fitted, held, damping)
        bias = None if refitted.bias is None else refitted.bias.cpu()
        return replace(refitted, weight=refitted.weight.cpu(), bias=bias)

    def _solve(
        self, name: str, weight: Tensor, retained: Tensor, fitted: Moments, held: Moments | None, damping: float | None
    ) -> Refitted:
        if name not in self.ranks:
            return self.method.refit(weight, retained, fitted, held, damping)
        damping = DEFAULT_DAMPING if damping is None else damping  # a grid is slow, and no better
        fit: pivoted_factors.Fit = pivoted_factors.reduced_rank_regression
        if name in self.weighed:
            root = output_root(self.program, self.weighed[name]).to(weight.device)
            fit = pivoted_factors.weighted_regression(root)
        return pivoted_factors.reconstruct_low_rank(weight, retained, self.ranks[name], fitted, held, damping, fit)[1]

    def _of_rows(self, rewritten: Rewritten, consumer: Consumer, moments: Moments | None) -> Moments | None:
        """Moments with the drift of the retained outputs only."""
        if moments is None or moments.drift is None:
            return moments
        count, columns = moments.drift.cross.shape
        numbers = consumer.restore(torch.arange(count)[:, None].expand(count, columns).contiguous())
        return replace(moments, drift=moments.drift.rows(self._rows(rewritten, consumer, numbers)[:, 0]))

    def _rows(self, rewritten: Rewritten, consumer: Consumer, weight: Tensor) -> Tensor:
        """The retained rows of the matrix of a consumer, with all columns."""
        for dim, indices in rewritten.keep.get(consumer.weight, {}).items():
            weight = weight if dim == consumer.dim else narrow(weight, dim, indices)
        return consumer.matrix(weight)


def stacks(consumers: Sequence[Consumer]) -> list[list[Consumer]]:
    """The members of every stack among these consumers."""
    by_weight: dict[str, list[Consumer]] = {}
    for consumer in (c for c in consumers if c.member is not None):
        by_weight.setdefault(consumer.weight, []).append(consumer)
    return list(by_weight.values())


def rare_damping(moments: Moments, damping: float | None) -> float | None:
    """The damping of a member of a stack: the usual one, or more where it has fewer tokens than columns."""
    columns = len(moments.sums)
    if moments.tokens >= columns:
        return damping
    least = DEFAULT_DAMPING if damping is None else damping
    return least * columns / max(moments.tokens, 1)


def average(weight: Tensor, results: Sequence[tuple[float, Refitted]]) -> Refitted:
    """The refit of a whole stack: the median damping of its members, and their errors, weighted by their tokens."""
    tokens = max(sum(count for count, _ in results), 1)
    before = sum(count * result.error_before for count, result in results) / tokens
    after = sum(count * result.error_after for count, result in results) / tokens
    dampings = sorted(result.damping for _, result in results) or [0.0]
    return Refitted(weight, dampings[len(dampings) // 2], before, after)


def fill(wide: Tensor, small: Tensor, indices: Mapping[int, Tensor]) -> Tensor:
    """The wide value with the small one at the retained indices of some dimensions, the last dimension first."""
    places = torch.arange(wide.numel()).view(wide.shape)
    for dim, retained in indices.items():
        places = narrow(places, dim, retained)
    return wide.flatten().index_put((places.flatten(),), small.flatten()).view(wide.shape)


def counterpart(segment: Segment, program: Program) -> Segment:
    """The segment of the rewritten graph with the nodes of the same names."""
    nodes = {node.name: node for node in program.graph.nodes}
    entry, left = (nodes[end.name] if end is not None else None for end in (segment.entry, segment.exit))
    return Segment(tuple(nodes[node.name] for node in segment.nodes), entry, left)


def shape(node: fx.Node) -> str:
    return str([getattr(leaf, "shape", leaf) for leaf in pytree.tree_leaves(node.meta["val"])])
