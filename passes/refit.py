"""The pass that refits consumers after a cut, one segment at a time."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune import biases, low_rank
from graphprune.axes import primes
from graphprune.calibration import Calibration, Collector
from graphprune.contracts import Consumer
from graphprune.dependencies import Dependencies
from graphprune.dimensions import rows
from graphprune.equations import DEFAULT
from graphprune.errors import CalibrationError
from graphprune.facts import Eligible, Refits
from graphprune.methods import Reconstruction, Refitted
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.pipeline import PASSES, Pass
from graphprune.plans import Plan, kept_beside, primes_to_keep
from graphprune.program import Program, Rewritten
from graphprune.progress import progress
from graphprune.segments import Segment, split
from graphprune.statistics import Moments, Statistics
from graphprune.sweep import Stream, compare, unseen
from graphprune.weights import Layered, Narrowed, narrow

VIEWS = (torch.ops.aten.view.default, torch.ops.aten.reshape.default, torch.ops.aten._unsafe_view.default)
STATISTICS = ("sequential", "dense", "mixed")


@PASSES.register("refit")
@dataclass(frozen=True)
class Refit(Pass):
    """Give the weights that contract a cut axis new values, `by` a registered method.

    `statistics`: ``sequential`` takes the inputs that the already pruned and refitted segments before make, ``dense``
    those of the dense model. ``mixed`` takes the former and aims at the outputs for a mixture of both, with the share
    `mix` of the latter (MPIFA, arXiv:2501.19090): so it makes up for errors of earlier segments, too. `damping` is
    relative to the mean second moment; without it, it is chosen on held-out calibration tokens.

    Three options want mixed statistics. With `producers`, the maps that make a cut axis come first: least squares
    bring their outputs, on pruned inputs, back to those of the dense model (the two steps of GOA, arXiv:2407.19126);
    with `others`, so do all maps after the first cut that lost nothing. With `residual`, a map whose outputs are added
    to something aims at the sum in the dense model: so every block makes up for what the stream of a residual network
    has lost before it.

    Weights to which the plan gives a rank (see `ranks`) get new values of that rank; the pass `factorise` then needs
    no data to make factors of them.
    """

    name: ClassVar[str] = "refit"
    needs: ClassVar[tuple[type, ...]] = (Rewritten, Calibration, Statistics)
    makes: ClassVar[tuple[type, ...]] = (Refits,)
    by: str = "least-squares"
    statistics: str = "sequential"
    damping: float | None = None
    mix: float = 0.25
    producers: bool = False
    others: bool = False
    residual: bool = False

    def check(self) -> None:
        """Refuse statistics that do not show what is aimed at.

        Raises:
            CalibrationError: if an option wants mixed statistics, and others are chosen.
        """
        if (self.producers or self.others or self.residual) and self.statistics != "mixed":
            raise CalibrationError(
                "producers, others and residual aim at what the dense model makes; they want statistics=mixed"
            )

    def run(self, program: Program) -> Program:
        """The program with refitted weights.

        Raises:
            CalibrationError: if activations are not finite, or there is no such choice of statistics.
            ExportError: if the destination cannot hold the biases; the pass ``room`` says so earlier.
        """
        if self.statistics not in STATISTICS:
            raise CalibrationError(f"statistics are {' or '.join(STATISTICS)}, not {self.statistics!r}")
        method = RECONSTRUCTIONS[self.by]
        consumers, skipped = refittable(program, method)
        named: dict[str, str] = {}
        if method.adds_bias:
            program, _ = biases.add(program, [*consumers, *_companions(program, consumers)])
            named = {c.weight: biases.name_of(c) for c in consumers}
        plan = program.facts.get(Plan)
        ranks = plan.ranks if plan else {}
        makers = _makers(program, ranks, self.producers, self.others)
        beside = _beside(program.fact(Rewritten).original, consumers) if self.residual else {}
        walk = _Walk(program, method, consumers, makers, ranks, beside, self.damping, self.statistics, self.mix)
        walk.run()
        refits = Refits(walk.done, skipped, program.weights, named, reduced=frozenset(ranks.keys() & walk.done.keys()))
        return program.with_facts(refits, weights=Layered((walk.changed, program.weights)))


def refittable(program: Program, method: Reconstruction) -> tuple[list[Consumer], dict[str, str]]:
    """The consumers whose columns were cut; and the weights that are left as they are, with the reason."""
    rewritten = program.fact(Rewritten)
    found = rewritten.original.fact(Dependencies).consumers
    readers = biases.readers(rewritten.original)
    cut = [c for c in found if c.dim in rewritten.keep.get(c.weight, {})]
    skipped: dict[str, str] = {}
    for consumer in cut:
        obstacle = biases.obstacle(program, consumer) if method.adds_bias else None
        if readers[consumer.weight] > 1:
            skipped[consumer.weight] = "several layers share it"
        elif obstacle:
            skipped[consumer.weight] = obstacle
    return [c for c in cut if c.weight not in skipped], skipped


def _makers(program: Program, ranks: Collection[str], producers: bool, others: bool) -> list[Consumer]:
    """The linear maps that have all their columns, each with a weight of its own: those to be of a lower rank, those
    that make a cut axis, and the others."""
    rewritten = program.fact(Rewritten)
    readers = biases.readers(rewritten.original)
    cut = {name: dims.keys() for name, dims in rewritten.keep.items() if name not in rewritten.scales}
    found = [c for c in rewritten.original.fact(Dependencies).consumers if readers[c.weight] == 1]
    whole = [c for c in found if c.dim not in cut.get(c.weight, ()) and c.weight not in rewritten.scales]
    return [c for c in whole if c.weight in ranks or (producers if cut.get(c.weight) else others)]


def _beside(program: Program, consumers: Sequence[Consumer]) -> dict[str, str]:
    """By the node of a linear map, the value of the same shape that is added to its outputs, and nothing else done."""
    nodes = {node.name: node for node in program.graph.nodes}
    found = {}
    for consumer in (c for c in consumers if c.outputs is not None):
        node = nodes[consumer.node]
        while consumer.outputs is rows and (user := _only_user(node)).target in VIEWS and _columns_of(user, node):
            node = user
        user = _only_user(node)
        operands = [n for n in user.all_input_nodes if n is not node and _shape(n) == _shape(node)]
        if user.target is torch.ops.aten.add.Tensor and not user.kwargs and len(operands) == 1:
            found[consumer.node] = operands[0].name
    return found


def _only_user(node: fx.Node) -> fx.Node:
    """What alone reads a node; the node itself if several or none do."""
    return next(iter(node.users)) if len(node.users) == 1 else node


def _columns_of(user: fx.Node, node: fx.Node) -> bool:
    """Has a view the same columns: does it only arrange the rows otherwise?"""
    return bool(user is not node and user.meta["val"].shape[-1] == node.meta["val"].shape[-1])


def _companions(program: Program, consumers: Sequence[Consumer]) -> list[Consumer]:
    """The linear maps that get a bias only because the destination cannot give one to the others alone."""
    new = {biases.name_of(c) for c in consumers if c.bias is None}
    eligible = program.facts.get(Eligible)
    names = eligible.destination.biases(new) - new if eligible and new else set()
    found = program.fact(Rewritten).original.fact(Dependencies).consumers
    return [c for c in found if c.bias is None and biases.name_of(c) in names]


@dataclass
class _Walk:
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
        big = split(original, {c.node for c in original.fact(Dependencies).consumers})
        last = max(i for i, segment in enumerate(big) if wanted & segment.names)
        self.shadow, self.pruned = Stream.start(original, calibration), Stream.start(self.program, calibration)
        mixed = self.statistics == "mixed"
        self.dense = replace(self.shadow) if mixed else self.shadow
        runs = 3 if mixed else 2
        with progress("refitting", (runs * last + runs - 1) * len(calibration.batches)) as step:
            for i, segment in enumerate(big[: last + 1]):
                here = [consumer for consumer in self.consumers if consumer.node in segment.names]
                if not wanted & segment.names and self._is_alike(segment):
                    exits = self.shadow.through(segment, original.weights, lambda: step(runs))
                    self.dense.entries = self.shadow.entries = self.pruned.entries = exits
                else:
                    self._segment(segment, here, step, final=i == last)

    def _is_alike(self, segment: Segment) -> bool:
        """Does the segment compute the same before and after the cut, on the same values?"""
        if segment.entry is not None and not self.dense.entries is self.shadow.entries is self.pruned.entries:
            return False
        keep = self.program.fact(Rewritten).keep
        if any(self.program.name(str(n.target)) in keep for n in segment.reads):
            return False
        pairs = zip(segment.nodes, counterpart(segment, self.program).nodes, strict=True)
        return all(_shape(old) == _shape(new) for old, new in pairs)

    def _segment(self, segment: Segment, here: list[Consumer], step: Callable[..., None], final: bool) -> None:
        """Look at the original segment, refit, and run the pruned one."""
        first = [maker for maker in self.makers if maker.node in segment.names]
        if first:
            seen, held, collectors = self._collectors(first, 1.0, {})
            self._look(segment.before({maker.x for maker in first}), collectors)
            self._remake(first, seen.found, held.found)
        seen, held, collectors = self._collectors(here, self.mix, self.beside)
        exits, dense_exits = self._look(segment, collectors, step)
        self._refit(here, seen.found, held.found)
        if final:
            return
        refitted = Layered((self.changed, self.program.weights))
        self.pruned.entries = self.pruned.through(counterpart(segment, self.program), refitted, step)
        self.shadow.entries = exits
        if self.statistics != "dense":
            self.shadow.entries = self._filled(segment, exits)
        if self.dense is not self.shadow:
            self.dense.entries = dense_exits

    def _collectors(
        self, here: list[Consumer], mix: float, beside: Mapping[str, str]
    ) -> tuple[Collector, Collector, list[Collector]]:
        """One for what is fitted, one for what is held out, and which of them each batch goes to."""
        original, apart = self.program.fact(Rewritten).original, self.dense is not self.shadow
        weights = {c.weight: original.weights[c.weight] for c in here} if apart else {}
        added = {c.node: beside[c.node] for c in here if c.node in beside}
        seen, held = (Collector(here, mix=mix, weights=weights, beside=added) for _ in range(2))
        calibration = self.program.fact(Calibration)
        return seen, held, [held if calibration.held_out(i) else seen for i in range(len(calibration.batches))]

    def _remake(self, makers: list[Consumer], seen: dict[str, Moments], held: dict[str, Moments]) -> None:
        """Refit maps to the outputs of the dense model: all rows, of which the pruned model has some."""
        rewritten = self.program.fact(Rewritten)
        for maker in makers:
            name, weight = maker.weight, maker.matrix(rewritten.original.weights[maker.weight])
            every = torch.arange(weight.shape[1])
            if name in self.ranks:
                self._reduce(maker, seen[maker.node], held.get(maker.node))
                continue
            method = RECONSTRUCTIONS["least-squares"]
            self.done[name] = method.refit(weight, every, seen[maker.node], held.get(maker.node), self.damping)
            self.wide[name] = maker.restore(self.done[name].weight).contiguous()
            self.changed[name] = Narrowed(self.wide, rewritten.keep)[name]

    def _look(
        self, segment: Segment, collectors: Sequence[Collector], step: Callable[..., None] = unseen
    ) -> tuple[list[Any], list[Any]]:
        """The exits on pruned inputs and the dense ones; refits see the former, and aim at the latter."""
        remade = Layered((self.wide, self.shadow.program.weights))
        if self.dense is self.shadow:
            exits = self.shadow.through(segment, remade, step, collectors)
            return exits, exits
        return compare(self.dense, self.shadow, segment, remade, collectors, step)

    def _filled(self, segment: Segment, exits: list[Any]) -> list[Any]:
        """The pruned entries of the next segment; where they are narrower, in the places of those that are left."""
        rewritten, pruned = self.program.fact(Rewritten), self.pruned.entries
        if segment.exit is None or not isinstance(exits[0], Tensor) or pruned[0].shape == exits[0].shape:
            return pruned
        dependencies = rewritten.original.fact(Dependencies)
        keep = primes_to_keep(dependencies, rewritten.groups)
        dims: Any = dependencies.values[segment.exit.name]
        cut = [dim for dim, axis in enumerate(dims) if any(p in keep for p in primes(axis))]
        indices = {dim: kept_beside(dims, dim, keep) for dim in reversed(cut)}
        return [fill(wide, narrow, indices) for wide, narrow in zip(exits, pruned, strict=True)]

    def _refit(self, here: list[Consumer], seen: dict[str, Moments], held: dict[str, Moments]) -> None:
        rewritten = self.program.fact(Rewritten)
        for consumer in here:
            kept = _columns(rewritten.keep[consumer.weight][consumer.dim], consumer.taps)
            weight = self._produced(rewritten, consumer, rewritten.original.weights[consumer.weight])
            moments = [self._made(rewritten, consumer, found.get(consumer.node)) for found in (seen, held)]
            assert moments[0] is not None
            result = self._fit(consumer.weight, weight, kept, moments[0], moments[1])
            self.done[consumer.weight] = result
            self.changed[consumer.weight] = consumer.restore(result.weight).contiguous()
            if result.bias is not None:
                name = biases.name_of(consumer)
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
        """New values for a matrix of which these columns are kept."""
        if name not in self.ranks:
            return self.method.refit(weight, kept, seen, held, self.damping)
        damping = DEFAULT if self.damping is None else self.damping  # to try many takes long, and gains nothing
        return low_rank.refit(weight, kept, self.ranks[name], seen, held, damping, low_rank.reduced)[1]

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


def _shape(node: fx.Node) -> str:
    return str([getattr(leaf, "shape", leaf) for leaf in pytree.tree_leaves(node.meta["val"])])


def _columns(kept: Tensor, taps: int) -> Tensor:
    """The columns of a matrix whose indices span `taps` columns each."""
    return (kept[:, None] * taps + torch.arange(taps)).flatten()
