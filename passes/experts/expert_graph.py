"""Graphs of feed-forward layers that were split into experts, and of the masked dense layers that they must equal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from operator import getitem
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.ir.program import Program, SplitSizes, copy_graph
from graphprune.ir.weights import Weights
from graphprune.passes.experts.feed_forward import VIEWS, FeedForward
from graphprune.passes.rewriting.graph_builder import GraphBuilder, InsertionPoint, bias_of

aten = torch.ops.aten
Sizes = Mapping[str, SplitSizes]
SHARED, EXPERTS, ROUTER, ROUTER_BIAS, MEMBERS, ALWAYS = (
    "shared", "experts", "router", "router_bias", "members", "always",
)  # fmt: skip


def masked(
    program: Program, layers: Sequence[FeedForward], sizes: Sizes, parts: Weights
) -> tuple[Program, dict[str, tuple[str, str]]]:
    """The dense program, in which neurons of experts that the router does not choose are multiplied by zero; and the
    names of the masked neurons and of the output of each layer.

    `parts` has for the last weight of every layer, by name and suffix: the `ROUTER`, shape (experts, hidden), and its
    bias; the `MEMBERS`, ones and zeros of shape (neurons, experts); and ones for neurons that are `ALWAYS` computed.
    """
    builder = GraphBuilder(copy_graph(program.graph), parts)
    added, nodes = dict[str, list[str]](), dict[str, tuple[str, str]]()
    for layer in layers:
        added[layer.name] = [f"{layer.name}_{part}" for part in (ROUTER, ROUTER_BIAS, MEMBERS, ALWAYS)]
        x = builder.nodes[layer.down.x]
        builder.replace(layer.down.node, partial(_masked, layer=layer, sizes=sizes[layer.name]))
        (product,) = (user for user in x.users if user.target is aten.mul.Tensor and user.users)
        nodes[layer.name] = product.name, builder.nodes[layer.down.node].name
    return builder.program(program, added, (), ()), nodes


def _masked(at: InsertionPoint, layer: FeedForward, sizes: SplitSizes) -> fx.Node:
    """The output of a masked layer."""
    neurons = at.node(layer.down.x)
    x = at.node(layer.producers[0].x)
    ones = at.call(aten.one_hot.default, _chosen(at, layer, x, sizes), sizes.experts)
    ones = at.call(aten.to.dtype, at.call(aten.sum.dim_IntList, ones, [-2]), neurons.meta["val"].dtype)
    members, always = (at.read(f"{layer.name}_{part}") for part in (MEMBERS, ALWAYS))
    product = at.call(aten.mul.Tensor, neurons, at.call(aten.linear.default, ones, members, always))
    args = [product if value is neurons else value for value in at.old.args]
    return at.call(at.old.target, *args)


def _chosen(at: InsertionPoint, layer: FeedForward, x: fx.Node, sizes: SplitSizes) -> fx.Node:
    """The experts of each token."""
    weight, bias = (at.read(f"{layer.name}_{part}") for part in (ROUTER, ROUTER_BIAS))
    scores = at.call(aten.linear.default, x, weight, bias)
    return at.call(getitem, at.call(aten.topk.default, scores, sizes.active), 1)


def expert_parts(program: Program, layer: FeedForward, order: Tensor, sizes: SplitSizes) -> dict[str, Tensor]:
    """The weights of the shared expert, if there is one, and of all others, from the neurons in this order."""
    made, shared = dict[str, Tensor](), layer.neurons - sizes.experts * sizes.width
    for consumer in layer.producers:
        rows = consumer.matrix(program.weights[consumer.weight])[order]
        stack = rows[shared:].view(sizes.experts, sizes.width, -1).transpose(1, 2)
        made |= {f"{consumer.weight}_{EXPERTS}": stack, f"{consumer.weight}_{SHARED}": rows[:shared]}
    columns = layer.matrix(program.weights[layer.name])[:, order]
    stack = columns[:, shared:].T.reshape(sizes.experts, sizes.width, -1)
    made |= {f"{layer.name}_{EXPERTS}": stack, f"{layer.name}_{SHARED}": columns[:, :shared]}
    for name in layer.own:
        numbers = program.weights[name][order]
        stack = numbers[shared:].view(sizes.experts, sizes.width)
        made |= {f"{name}_{EXPERTS}": stack, f"{name}_{SHARED}": numbers[:shared]}
    return {name: part.contiguous() for name, part in made.items() if part.numel()}


def names_of(layer: FeedForward, sizes: SplitSizes) -> dict[str, list[str]]:
    """The names of new parameters in the place of each parameter of a layer."""
    parts = [EXPERTS, SHARED] if layer.neurons > sizes.experts * sizes.width else [EXPERTS]
    replaced = (*(c.weight for c in layer.producers), *layer.own, layer.name)
    names = {name: [f"{name}_{part}" for part in parts] for name in replaced}
    names[layer.name] += [f"{layer.name}_{part}" for part in (ROUTER, ROUTER_BIAS)]
    return names


def with_experts(program: Program, layers: Sequence[FeedForward], sizes: Sizes, parts: Weights) -> Program:
    """The program whose layers multiply the rows of a token by the weights of its experts alone.

    `parts` has the tensors of `names_of`. The rows of all tokens are sorted by expert, and each expert multiplies its
    own.
    """
    builder = GraphBuilder(copy_graph(program.graph), parts)
    added = dict[str, list[str]]()
    for layer in layers:
        added |= names_of(layer, sizes[layer.name])
        builder.replace(layer.down.node, partial(_split, program=program, layer=layer, sizes=sizes[layer.name]))
    return builder.program(program, added, (), added)


def _split(at: InsertionPoint, program: Program, layer: FeedForward, sizes: SplitSizes) -> fx.Node:
    """The output of a split layer: the sum of what the experts of each token compute, and the shared one."""
    x = at.node(layer.producers[0].x)
    rows = at.call(aten.reshape.default, x, [-1, layer.hidden])
    chosen = at.call(aten.reshape.default, _chosen(at, layer, rows, sizes), [-1])
    sort = at.call(aten.sort.default, chosen)
    experts, order = at.call(getitem, sort, 0), at.call(getitem, sort, 1)
    counts = at.call(aten.histc.default, at.call(aten.to.dtype, experts, torch.float32), sizes.experts, 0,
                     sizes.experts - 1)  # fmt: skip
    ends = at.call(aten.cumsum.default, counts, 0, dtype=torch.int32)
    own = at.call(aten.index_select.default, rows, 0, at.call(aten.floor_divide.default, order, sizes.active))
    outputs = _replay(_Routed(at, experts, ends), layer, own, program)
    back = at.call(getitem, at.call(aten.sort.default, order), 1)
    outputs = at.call(aten.reshape.default, at.call(aten.index_select.default, outputs, 0, back),
                      [-1, sizes.active, layer.hidden])  # fmt: skip
    total = at.call(aten.sum.dim_IntList, outputs, [1])
    if layer.neurons > sizes.experts * sizes.width:
        total = at.call(aten.add.Tensor, total, _replay(_Shared(at), layer, rows, program))
    if (bias := bias_of(at.old)) is not None:
        total = at.call(aten.add.Tensor, total, bias)
    return at.call(aten.reshape.default, total, _shape(at, x, layer))


def _shape(at: InsertionPoint, x: fx.Node, layer: FeedForward) -> list[Any]:
    """The shape of the output, with -1 for its first dimension."""
    leading = x.meta["val"].shape[1:-1]
    sizes = [n if isinstance(n, int) else at.call(aten.sym_size.int, x, i) for i, n in enumerate(leading, 1)]
    return [-1, *sizes, layer.hidden]


@dataclass(frozen=True)
class _Shared:
    """Products of all rows with the weights of the shared expert."""

    at: InsertionPoint

    def product(self, x: fx.Node, weight: str) -> fx.Node:
        """The rows times a weight; shape (tokens, shared neurons), or (tokens, hidden) for the last weight."""
        return self.at.call(aten.linear.default, x, self.at.read(f"{weight}_{SHARED}"))

    def own(self, name: str) -> fx.Node:
        """Numbers of its neurons."""
        return self.at.read(f"{name}_{SHARED}")


@dataclass(frozen=True)
class _Routed:
    """Products of rows, sorted by their `experts`, with the weights of these; `ends` has the last row of each."""

    at: InsertionPoint
    experts: fx.Node
    ends: fx.Node

    def product(self, x: fx.Node, weight: str) -> fx.Node:
        """The rows times the weights of their experts; shape (rows, width), or (rows, hidden) for the last weight."""
        import_module("transformers.integrations.moe")  # that of torch has no shapes for other types than bfloat16
        product = torch.ops.transformers.grouped_mm_fallback.default
        return self.at.call(product, x, self.at.read(f"{weight}_{EXPERTS}"), self.ends)

    def own(self, name: str) -> fx.Node:
        """Numbers of the neurons of each row, shape (rows, width)."""
        return self.at.call(aten.index_select.default, self.at.read(f"{name}_{EXPERTS}"), 0, self.experts)


def _replay(part: _Shared | _Routed, layer: FeedForward, rows: fx.Node, program: Program) -> fx.Node:
    """The outputs of some neurons: the nodes of the layer once more, for rows of shape (rows, hidden)."""
    at, values = part.at, dict[fx.Node, fx.Node]()

    def value(node: fx.Node) -> fx.Node:
        name = program.name(str(node.target))
        return values.get(node) or (part.own(name) if node.op == "get_attr" and name in layer.own else node)

    for consumer in layer.producers:
        old = at.node(consumer.node)
        product, bias = part.product(rows, consumer.weight), bias_of(old)
        values[old] = product if bias is None else at.call(aten.add.Tensor, product, value(bias))
    for node in map(at.node, layer.between):
        if node.target in VIEWS:
            values[node] = value(node.all_input_nodes[0])
            continue
        args, kwargs = pytree.tree_map_only(fx.Node, value, (node.args, dict(node.kwargs)))
        values[node] = at.call(node.target, *args, **kwargs)
    return part.product(values[at.node(layer.down.x)], layer.name)
