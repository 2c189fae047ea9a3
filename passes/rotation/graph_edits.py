"""Edits of a graph that preserve its outputs: linear layers are inserted, and weights changed."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from graphprune.axes.algebra import Axis, Prime, resolve
from graphprune.axes.groups import Dependencies
from graphprune.axes.rule import Consumer
from graphprune.ir.program import Program, copy_graph
from graphprune.ir.weights import Layered
from graphprune.solvers import new_biases

aten = torch.ops.aten
VIEWS = (aten.slice.Tensor, aten.clone.default, aten.view.default, aten.reshape.default, aten.unsqueeze.default)


@dataclass
class Edits:
    """A copy of the graph of a program, new `weights` by name, and the names of `added` parameters, for some axes.

    `fused` names parameters that were fused into others; they are removed where nothing reads them any more.
    """

    program: Program
    axes: Collection[Prime]
    weights: dict[str, Tensor] = field(default_factory=dict)
    added: set[str] = field(default_factory=set)
    fused: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.graph = copy_graph(self.program.graph)
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.dependencies = self.program.fact(Dependencies)
        self.readers = new_biases.count_readers(self.program)

    def done(self) -> Program:
        """The edited program."""
        names = {node: self.program.name(str(node.target)) for node in self.graph.nodes if node.op == "get_attr"}
        for node in (node for node, name in names.items() if name in self.fused and not node.users):
            self.graph.erase_node(node)
        self.graph.lint()
        removed = self.fused - {name for node, name in names.items() if node.users}
        weights = Layered((self.weights, self.program.weights))
        parameters = (self.program.parameters | self.added) - removed
        new = replace(self.program, graph=self.graph, weights=weights, parameters=parameters)
        return new.without(Dependencies)  # the axes of the old graph do not hold for the new one

    def weight(self, name: str) -> Tensor:
        """The current value of a parameter."""
        return self.weights[name] if name in self.weights else self.program.weights[name]

    def reads(self, name: str) -> list[fx.Node]:
        """The used nodes that read a parameter."""
        nodes = (n for n in self.graph.nodes if n.op == "get_attr" and self.program.name(str(n.target)) == name)
        return [node for node in nodes if node.users]

    def last_axis(self, node: fx.Node) -> Axis | None:
        """The axis of the last dimension of a value of the program."""
        dims = self.dependencies.values.get(node.name)
        return resolve(dims[-1]) if isinstance(dims, tuple) and dims else None

    def consumers(self, x: fx.Node) -> Iterator[Consumer | None]:
        """The linear layers that read a value, or a view of it; None for each other reader."""
        for user in x.users:
            if user.target in VIEWS and self.last_axis(user) in self.axes:
                yield from self.consumers(user)
            else:
                yield next((c for c in self.dependencies.consumers if c.node == user.name and c.x == x.name), None)

    def sole_consumers(self, x: fx.Node) -> list[Consumer] | None:
        """The linear layers that read a value; None if anything else reads it, or they share a weight."""
        consumers = list(self.consumers(x))
        unshared = [c for c in consumers if c is not None and self.readers[c.weight] == 1]
        return unshared if len(unshared) == len(consumers) else None

    def insert(self, name: str, matrix: Tensor, x: fx.Node, users: Collection[fx.Node]) -> None:
        """Insert a linear layer with a new weight between a value and some of its users."""
        with self.graph.inserting_after(x):
            read = self.graph.get_attr(name)
        with self.graph.inserting_after(read):
            new = self.graph.call_function(aten.linear.default, (x, read))
        with x.meta["val"].fake_mode:
            read.meta["val"] = torch.empty(matrix.shape, dtype=matrix.dtype, device=x.meta["val"].device)
            new.meta = {**x.meta, "val": torch.empty_like(x.meta["val"])}
        for user in users:
            user.replace_input_with(x, new)
        self.weights[name] = matrix
        self.added.add(name)
