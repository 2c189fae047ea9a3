"""Graphs with factors of a low rank in the place of weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from graphprune.axes.rule import Consumer
from graphprune.ir.program import Program, copy_graph
from graphprune.ir.weights import Layered, Weights
from graphprune.solvers.embedding_tables import EmbeddingTable
from graphprune.solvers.row_groups import GroupedFactors

aten = torch.ops.aten
ROWS, COEFFICIENTS, ORDER = "rows", "coefficients", "order"
PARTS = (ROWS, COEFFICIENTS, ORDER)


def factored(
    program: Program,
    layers: Sequence[Consumer],
    parts: Weights,
    tables: Sequence[EmbeddingTable] = (),
    layouts: Mapping[str, GroupedFactors] = MappingProxyType({}),
) -> Program:
    """The program whose linear layers multiply by rows and coefficients, named by the weight and one of `PARTS`; and
    which looks up rows of `tables`, and computes their heads, by the factors of each group of rows."""
    names = {c.weight: [f"{c.weight}_{part}" for part in PARTS] for c in layers}
    own = {table.weight: layouts[table.weight].named(table.weight) for table in tables}
    names |= {weight: list(tensors) for weight, tensors in own.items()}
    builder = _Builder(copy_graph(program.graph), Layered((*own.values(), parts)))
    for consumer in layers:
        builder.replace(consumer.node, partial(_product, consumer=consumer))
    for table in tables:
        for node in table.lookups:
            builder.replace(node, partial(_lookup, name=table.weight, factors=layouts[table.weight]))
        for head in table.heads:
            builder.replace(head.node, partial(_outputs, head=head, factors=layouts[table.weight]))
    return builder.program(program, names)


@dataclass
class _Builder:
    """A graph that is changed, and new parameters and buffers, each read by one node."""

    graph: fx.Graph
    parts: Weights
    reads: dict[str, fx.Node] = field(default_factory=dict)
    nodes: dict[str, fx.Node] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = {node.name: node for node in self.graph.nodes}

    def replace(self, name: str, make: Callable[["_At"], fx.Node]) -> None:
        """Put the value that `make` computes in the place of a node."""
        old = self.nodes[name]
        new = make(_At(self, old))
        old.replace_all_uses_with(new)
        self.nodes[name] = new
        _erase(self.graph, old)

    def read(self, name: str, like: fx.Node) -> fx.Node:
        """The node that reads a new parameter or buffer; new ones stand at the start of the graph, in order."""
        if name not in self.reads:
            last = next(reversed(self.reads.values()), None)
            place = self.graph.inserting_before(None) if last is None else self.graph.inserting_after(last)
            fake = like.meta["val"]
            with place:
                self.reads[name] = self.graph.get_attr(name)
            with fake.fake_mode:
                self.reads[name].meta["val"] = torch.empty_like(self.parts[name], device=fake.device)
        return self.reads[name]

    def program(self, program: Program, added: Mapping[str, Sequence[str]]) -> Program:
        """The program with the changed graph; `added` has the new names in the place of each weight."""
        self.graph.lint()
        names = [name for weight in sorted(added) for name in added[weight]]
        parameters = {name for name in names if not name.endswith(f"_{ORDER}")}
        ties = {alias: name for alias, name in program.ties.items() if name not in added}
        weights = Layered(({name: self.parts[name] for name in names}, program.weights))
        all_parameters = program.parameters.difference(added).union(parameters)
        return replace(program, graph=self.graph, weights=weights, parameters=all_parameters, ties=ties)


@dataclass(frozen=True)
class _At:
    """The place before a node of a graph, where new nodes are inserted."""

    builder: _Builder
    old: fx.Node

    def node(self, name: str) -> fx.Node:
        """A node of the graph, or what is in its place."""
        return self.builder.nodes[name]

    def call(self, target: Any, *args: Any) -> fx.Node:
        """The output of an operator."""
        with self.builder.graph.inserting_before(self.old):
            node = self.builder.graph.call_function(target, args)
        node.meta = {**self.old.meta, "val": _fake_value(node, self.old.meta["val"].fake_mode)}
        return node

    def read(self, name: str) -> fx.Node:
        """A new parameter or buffer."""
        return self.builder.read(name, self.old)


def _product(at: _At, consumer: Consumer) -> fx.Node:
    """The output of a factorized linear layer."""
    rows, coefficients, order = (at.read(f"{consumer.weight}_{part}") for part in PARTS)
    first = at.call(aten.linear.default, at.node(consumer.x), rows)
    rest = at.call(aten.linear.default, first, coefficients)
    return _ordered(at, [first, rest], order)


def _outputs(at: _At, head: Consumer, factors: GroupedFactors) -> fx.Node:
    """The output of a head, group by group."""
    rows, order = (at.read(f"{head.weight}_{part}") for part in (ROWS, ORDER))
    first = at.call(aten.linear.default, at.node(head.x), rows)
    outputs = [first]
    for i, (start, coefficients) in enumerate(zip(factors.starts, factors.coefficients, strict=True)):
        own = at.call(aten.slice.Tensor, first, -1, start, start + coefficients.shape[1])
        outputs.append(at.call(aten.linear.default, own, at.read(f"{head.weight}_{COEFFICIENTS}_{i}")))
    return _ordered(at, outputs, order)


def _ordered(at: _At, outputs: Sequence[fx.Node], order: fx.Node) -> fx.Node:
    """Outputs in the order of the layer that is replaced, with its bias."""
    whole = at.call(aten.index_select.default, at.call(aten.cat.default, list(outputs), -1), -1, order)
    bias = _bias(at.old)
    return whole if bias is None else at.call(aten.add.Tensor, whole, bias)


def _lookup(at: _At, name: str, factors: GroupedFactors) -> fx.Node:
    """The rows that indices select: stored ones, or coefficients times the stored rows of their group."""
    rows, order = (at.read(f"{name}_{part}") for part in (ROWS, ORDER))
    places = at.call(aten.index.Tensor, order, [at.old.args[1]])
    value = at.call(aten.embedding.default, rows, at.call(aten.clamp.default, places, None, len(factors.rows) - 1))
    start = len(factors.rows)
    for i, (first, coefficients) in enumerate(zip(factors.starts, factors.coefficients, strict=True)):
        count, rank = coefficients.shape
        inside = at.call(aten.clamp.default, at.call(aten.sub.Tensor, places, start), 0, count - 1)
        chosen = at.call(aten.embedding.default, at.read(f"{name}_{COEFFICIENTS}_{i}"), inside)
        basis = at.call(aten.slice.Tensor, rows, 0, first, first + rank)
        product = at.call(aten.matmul.default, chosen, basis)
        belongs = at.call(aten.unsqueeze.default, at.call(aten.ge.Scalar, places, start), -1)
        value = at.call(aten.where.self, belongs, product, value)
        start += count
    return value


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
