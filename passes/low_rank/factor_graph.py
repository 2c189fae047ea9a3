"""Graphs with factors of a low rank in the place of weights."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
from torch import fx

from graphprune.axes.rule import Consumer
from graphprune.ir.program import Program, copy_graph
from graphprune.ir.weights import Layered, Weights
from graphprune.passes.rewriting.graph_builder import GraphBuilder, InsertionPoint, bias_of
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
    builder = GraphBuilder(copy_graph(program.graph), Layered((*own.values(), parts)))
    for consumer in layers:
        builder.replace(consumer.node, partial(_product, consumer=consumer))
    for table in tables:
        for node in table.lookups:
            builder.replace(node, partial(_lookup, name=table.weight, factors=layouts[table.weight]))
        for head in table.heads:
            builder.replace(head.node, partial(_outputs, head=head, factors=layouts[table.weight]))
    buffers = {name for added in names.values() for name in added if name.endswith(f"_{ORDER}")}
    return builder.program(program, names, buffers, names)


def _product(at: InsertionPoint, consumer: Consumer) -> fx.Node:
    """The output of a factorized linear layer."""
    rows, coefficients, order = (at.read(f"{consumer.weight}_{part}") for part in PARTS)
    first = at.call(aten.linear.default, at.node(consumer.x), rows)
    rest = at.call(aten.linear.default, first, coefficients)
    return _ordered(at, [first, rest], order)


def _outputs(at: InsertionPoint, head: Consumer, factors: GroupedFactors) -> fx.Node:
    """The output of a head, group by group."""
    rows, order = (at.read(f"{head.weight}_{part}") for part in (ROWS, ORDER))
    first = at.call(aten.linear.default, at.node(head.x), rows)
    outputs = [first]
    for i, (start, coefficients) in enumerate(zip(factors.starts, factors.coefficients, strict=True)):
        own = at.call(aten.slice.Tensor, first, -1, start, start + coefficients.shape[1])
        outputs.append(at.call(aten.linear.default, own, at.read(f"{head.weight}_{COEFFICIENTS}_{i}")))
    return _ordered(at, outputs, order)


def _ordered(at: InsertionPoint, outputs: Sequence[fx.Node], order: fx.Node) -> fx.Node:
    """Outputs in the order of the layer that is replaced, with its bias."""
    whole = at.call(aten.index_select.default, at.call(aten.cat.default, list(outputs), -1), -1, order)
    bias = bias_of(at.old)
    return whole if bias is None else at.call(aten.add.Tensor, whole, bias)


def _lookup(at: InsertionPoint, name: str, factors: GroupedFactors) -> fx.Node:
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
