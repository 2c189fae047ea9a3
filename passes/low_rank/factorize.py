"""The pass that replaces weights by low-rank factors, fitted one segment at a time."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher

from graphprune.axes.groups import Dependencies
from graphprune.axes.rule import Consumer
from graphprune.display.progress import progress
from graphprune.errors import CalibrationError, PlanError
from graphprune.execution.equivalence import verify_cut
from graphprune.execution.output_comparison import Verification
from graphprune.execution.segments import Segment, split_at_linear_layers
from graphprune.ir.program import Dropped, Factored, Program, Rewritten, copy_graph
from graphprune.ir.weights import Layered, Weights
from graphprune.pipeline import PASSES, Pass, Timings
from graphprune.planning.facts import OF_ONE_GRAPH, Refits
from graphprune.planning.plan import Plan
from graphprune.solvers.factorable import factorable
from graphprune.solvers.pivoted_factors import (
    Pivoted,
    alternating_least_squares,
    exact_factors,
    reconstruct_low_rank,
    reduced_rank_regression,
)
from graphprune.statistics.collector import Calibration, Collector
from graphprune.statistics.stream import Stream, advance_both

aten = torch.ops.aten
PARTS = ("rows", "coefficients", "order")
RETAINED = (Calibration, Timings, Plan, Rewritten, Dropped, Refits)


@PASSES.register("factorize")
@dataclass(frozen=True)
class Factorize(Pass):
    """Replace weights by factors of the ranks in the plan, in the form of rows and coefficients (PIFA), and verify that
    the graph computes what it would with the products of the factors.

    The factors are fitted on inputs from the layers before, already factorized, to the outputs of the layer for a
    mixture of these inputs and those of the original model, with the share `mix` of the latter (MPIFA,
    arXiv:2501.19090). With `rounds`, there are so many rounds of alternating least squares, as published; by default,
    the result is their limit. `damping` is relative to the mean diagonal of the Gram matrix; by default, it is chosen
    on held-out tokens. Weights to which a refit gave their rank are factorized exactly.
    """

    name: ClassVar[str] = "factorize"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Plan, Calibration)
    reads: ClassVar[tuple[type, ...]] = (Rewritten, Dropped, Refits)
    makes: ClassVar[tuple[type, ...]] = (Factored, Verification)
    invalidates: ClassVar[tuple[type, ...]] = OF_ONE_GRAPH
    mix: float = 0.25
    rounds: int | None = None
    damping: float | None = None

    def check(self) -> None:
        """Refuse an impossible mixture.

        Raises:
            CalibrationError: if mix is no share.
        """
        if not 0 <= self.mix <= 1:
            raise CalibrationError(f"mix is a share between 0 and 1, got {self.mix}")

    def run(self, program: Program) -> Program:
        """The program with factors.

        Raises:
            PlanError: if the plan has no ranks, or those of another program.
            CalibrationError: if activations are not finite.
            VerificationError: if the numbers disagree.
        """
        ranks = program.fact(Plan).ranks
        layers, left = factorable(program, program.fact(Dependencies))
        layers = [layer for layer in layers if layer.weight in ranks]
        if not ranks or len(layers) < len(ranks):
            raise PlanError(
                "the plan has no ranks for linear layers of this program; put allocate-ranks before factorize"
            )
        walk = _Walk(program, layers, ranks, self)
        if ranks.keys() <= lowered(program):
            walk.factorize_exactly()
        else:
            walk.run()
        parts = {f"{name}_{part}": getattr(p, part) for name, p in walk.parts.items() for part in PARTS}
        small = factored(program, layers, parts)
        products = replace(program, weights=Layered((walk.changed, program.weights)))
        fact = Factored(program, ranks, walk.errors, left)
        facts = [program.facts[kind] for kind in RETAINED if kind in program.facts]
        return replace(small, facts={}).with_facts(*facts, fact, verify_cut(products, small, {}, rounded=True))


@dataclass
class _Walk:
    """One walk over the segments of the dense model, and of the model with the products of the factors so far."""

    program: Program
    layers: Sequence[Consumer]
    ranks: Mapping[str, int]
    options: Factorize
    changed: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, Pivoted] = field(default_factory=dict)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)

    def factorize_exactly(self) -> None:
        """Compute the factors of weights that have their ranks already."""
        fits = self.program.fact(Refits).by_weight
        for consumer in self.layers:
            name = consumer.weight
            self.parts[name] = exact_factors(consumer.matrix(self.program.weights[name]), self.ranks[name])
            self.changed[name] = consumer.restore(self.parts[name].product).to(self.program.weights[name].dtype)
            self.errors[name] = fits[name].error_before, fits[name].error_after

    def run(self) -> None:
        """Fit all factors."""
        calibration = self.program.fact(Calibration)
        nodes = {consumer.node for consumer in self.layers}
        segments = split_at_linear_layers(self.program)
        last = max(i for i, segment in enumerate(segments) if nodes & segment.names)
        self.dense = Stream.start(self.program, calibration)
        self.pruned = replace(self.dense)
        with progress("factorizing", len(self.layers)) as step:
            for i, segment in enumerate(segments[: last + 1]):
                in_segment = [consumer for consumer in self.layers if consumer.node in segment.names]
                for stage in stages(segment, in_segment):
                    self._fit(segment.upstream_of({c.x for c in stage}), stage)
                    step(len(stage))
                if i < last:
                    self._advance(segment)

    def _advance(self, segment: Segment) -> None:
        """Move both streams to the next segment."""
        alike = self.dense.entries is self.pruned.entries or segment.entry is None
        exits = self.dense.advance(segment, self.program.weights)
        if not alike or segment.weights(self.program) & self.changed.keys():
            self.pruned.entries = self.pruned.advance(segment, self._weights)
        else:
            self.pruned.entries = exits
        self.dense.entries = exits

    @property
    def _weights(self) -> Weights:
        return Layered((self.changed, self.program.weights))

    def _fit(self, before: Segment, stage: Sequence[Consumer]) -> None:
        """Collect the inputs of some layers, and fit their factors."""
        calibration, mix = self.program.fact(Calibration), self.options.mix
        weights = {c.weight: self.program.weights[c.weight] for c in stage}
        fitted, held = (Collector(stage, mix=mix, weights=weights) for _ in range(2))
        collectors = [held if calibration.held_out(i) else fitted for i in range(len(calibration.batches))]
        advance_both(self.dense, self.pruned, before, self._weights, collectors)
        fit = reduced_rank_regression if self.options.rounds is None else alternating_least_squares(self.options.rounds)
        for consumer in stage:
            name, weight = consumer.weight, consumer.matrix(self.program.weights[consumer.weight])
            moments = fitted.moments_with_drift[consumer.node], held.moments_with_drift.get(consumer.node)
            every = torch.arange(weight.shape[1])
            factors, result = reconstruct_low_rank(weight, every, self.ranks[name], *moments, self.options.damping, fit)
            self.parts[name] = factors
            self.changed[name] = consumer.restore(result.weight).contiguous()
            self.errors[name] = result.error_before, result.error_after


def lowered(program: Program) -> Set[str]:
    """The weights that got a lower rank by a refit."""
    refits = program.facts.get(Refits)
    return refits.reduced if refits else frozenset()


def stages(segment: Segment, layers: Sequence[Consumer]) -> Iterator[list[Consumer]]:
    """The layers of a segment in stages: the inputs of one stage depend on earlier stages only."""
    nodes, level = {c.node for c in layers}, dict[str, int]()
    for node in segment.nodes:
        above = [level.get(n.name, 0) for n in node.all_input_nodes]
        level[node.name] = max(above, default=0) + (node.name in nodes)
    for depth in sorted({level.get(c.x, 0) for c in layers}):
        yield [c for c in layers if level.get(c.x, 0) == depth]


def factored(program: Program, layers: Sequence[Consumer], parts: Weights) -> Program:
    """The program whose linear layers multiply by rows and coefficients, named by the weight and one of `PARTS`."""
    graph = copy_graph(program.graph)
    nodes = {node.name: node for node in graph.nodes}
    for consumer in layers:
        old = nodes[consumer.node]
        with graph.inserting_before(old):
            new = _product(graph, old, nodes[consumer.x], consumer, parts)
        old.replace_all_uses_with(new)
        _erase(graph, old)
    graph.lint()
    removed = {consumer.weight for consumer in layers}
    names = [f"{name}_{part}" for name in sorted(removed) for part in PARTS]
    added = {name for name in names if not name.endswith(PARTS[-1])}
    ties = {alias: name for alias, name in program.ties.items() if name not in removed}
    weights = Layered(({name: parts[name] for name in names}, program.weights))
    return replace(program, graph=graph, weights=weights, parameters=program.parameters - removed | added, ties=ties)


def _product(graph: fx.Graph, old: fx.Node, x: fx.Node, consumer: Consumer, parts: Weights) -> fx.Node:
    """The output of a factorized linear layer."""

    def call(target: Any, *args: Any) -> fx.Node:
        node = graph.call_function(target, args)
        node.meta = {**old.meta, "val": _fake_value(node, mode)}
        return node

    def read(part: str) -> fx.Node:
        name = f"{consumer.weight}_{part}"
        node = graph.get_attr(name)
        with mode:
            node.meta["val"] = torch.empty_like(parts[name], device=old.meta["val"].device)
        return node

    mode = old.meta["val"].fake_mode
    first = call(aten.linear.default, x, read("rows"))
    rest = call(aten.linear.default, first, read("coefficients"))
    product = call(aten.index_select.default, call(aten.cat.default, [first, rest], -1), -1, read("order"))
    bias = _bias(old)
    return product if bias is None else call(aten.add.Tensor, product, bias)


def _bias(node: fx.Node) -> Any:
    """The bias of a linear layer, if it has one."""
    if node.target is aten.addmm.default:
        return node.args[0]
    return node.args[2] if node.target is aten.linear.default and len(node.args) > 2 else None


def _fake_value(node: fx.Node, mode: Any) -> Any:
    args = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], node.args)
    with mode, enable_python_dispatcher():
        return node.target(*args)  # type: ignore[operator]


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Remove an unused node, and inputs that become unused: its weight, and views of it."""
    inputs = node.all_input_nodes
    graph.erase_node(node)
    for source in inputs:
        if not source.users and source.op != "placeholder":
            _erase(graph, source)
