"""Dense feed-forward layers in a graph: linear layers, an element-wise function of their outputs, a linear layer."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from math import prod

import torch
from torch import Tensor, fx

from graphprune.axes.groups import Dependencies, Group
from graphprune.axes.rule import Consumer
from graphprune.axes.rule_helpers import reads_positions, size_hint
from graphprune.errors import reason_of
from graphprune.ir.program import Program
from graphprune.passes.operators import RULES
from graphprune.passes.operators.elementwise import Elementwise
from graphprune.passes.rewriting.graph_builder import bias_of
from graphprune.solvers.factorable import PRODUCTS
from graphprune.solvers.new_biases import count_readers

aten = torch.ops.aten
VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward layer: the `producers` read one value, and `down` reads the neurons that they compute.

    `between` names the element-wise nodes and views from the producers to the neurons, in order, and `own` the
    parameters with a number for each neuron, such as biases. `tokens` are those of the example inputs.
    """

    producers: tuple[Consumer, ...]
    down: Consumer
    between: tuple[str, ...]
    own: tuple[str, ...]
    hidden: int
    neurons: int
    tokens: int

    @property
    def name(self) -> str:
        """Name of the last weight."""
        return self.down.weight

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one neuron for one token."""
        return (len(self.producers) + 1) * self.hidden

    def matrix(self, weight: Tensor) -> Tensor:
        """The last weight as a matrix, shape (hidden, neurons)."""
        return self.down.matrix(weight)


class _UnfitError(Exception):
    """The reason why a layer cannot be split."""


def feed_forward_layers(program: Program, protect: Collection[str] = ()) -> tuple[list[FeedForward], dict[str, str]]:
    """The feed-forward layers that can be split, in order; and the groups of neurons that cannot, with reasons."""
    dependencies, readers = program.fact(Dependencies), count_readers(program)
    nodes = {node.name: node for node in program.graph.nodes}
    found, left = dict[str, FeedForward](), dict[str, str]()
    for group in (group for group in dependencies.groups if group.label == "neurons"):
        names = {place.parameter for place in group.places}
        try:
            if any(fnmatch(name, glob) for name in names for glob in protect):
                raise _UnfitError("it is protected")
            if any(readers[name] > 1 for name in names):
                raise _UnfitError("its weights are shared")
            layer = _layer(program, dependencies, group, nodes)
            found[layer.down.node] = layer
        except _UnfitError as why:
            left[group.name] = reason_of(why)
    return [found[name] for name in nodes if name in found], left


def _layer(program: Program, dependencies: Dependencies, group: Group, nodes: Mapping[str, fx.Node]) -> FeedForward:
    """The layer of a group of neurons."""
    producers, consumers = dependencies.producers_of(group), dependencies.consumers_of(group)
    if len(consumers) != 1 or not producers or dependencies.members_of(group):
        raise _UnfitError("its neurons do not go from plain linear layers to a single one")
    down, shapes = consumers[0], program.shapes()
    linear, ends = (*producers, down), [nodes[c.node] for c in (*producers, down)]
    if any(node.target not in PRODUCTS or node.kwargs for node in ends) or any(map(reads_positions, linear)):
        raise _UnfitError("its linear layers are no plain matrix products")
    hidden = shapes[down.weight][1 - down.dim]
    if any(shapes[c.weight][c.dim] != hidden or shapes[c.weight][1 - c.dim] != group.size for c in producers):
        raise _UnfitError(
            "its linear layers compute more than its neurons, or outputs of another number than the inputs"
        )
    first, last = (node.meta["val"].shape[:-1] for node in (nodes[producers[0].x], ends[-1]))
    if len({c.x for c in producers}) > 1 or tuple(first) != tuple(last) or not first:
        raise _UnfitError("its linear layers do not read the same value, or the outputs have another shape")
    between, own = _between(program, group.size, nodes[down.x], ends)
    tokens = prod(size_hint(length) for length in ends[-1].meta["val"].shape[:-1])
    return FeedForward(tuple(producers), down, between, own, hidden, group.size, tokens)


def _between(program: Program, size: int, last: fx.Node, ends: list[fx.Node]) -> tuple[tuple[str, ...], ...]:
    """The nodes from the producers to the neurons, and the parameters with a number for each neuron."""
    inside, stack, reads = set[fx.Node](), [last], [bias_of(node) for node in ends[:-1]]
    while stack:
        node = stack.pop()
        if node.op == "get_attr":
            reads.append(node)
        elif node not in inside and node not in ends:
            _require_elementwise(node, size)
            inside.add(node)
            stack += node.all_input_nodes[:1] if node.target in VIEWS else node.all_input_nodes  # without sizes
    if any(user not in inside and user is not ends[-1] for node in (*inside, *ends[:-1]) for user in node.users):
        raise _UnfitError("its neurons are read elsewhere")
    own = [node for node in reads if node is not None and node.meta["val"].numel() != 1]
    if any(node.op != "get_attr" or tuple(node.meta["val"].shape) != (size,) for node in own):
        raise _UnfitError("between its linear layers are other numbers than one for each neuron")
    return tuple(node.name for node in program.graph.nodes if node in inside), tuple(sorted(program.names(own)))


def _require_elementwise(node: fx.Node, size: int) -> None:
    value = node.meta.get("val")
    rowwise = isinstance(RULES.get(node.target), Elementwise) or node.target in VIEWS
    if not rowwise or not isinstance(value, Tensor) or value.dim() < 1 or value.shape[-1] != size:
        raise _UnfitError(f"{node.name} between its linear layers is no function of each neuron")
