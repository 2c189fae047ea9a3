"""Edits of a graph that keep what it computes: maps are put between values, and weights get other numbers."""

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
    """A copy of a program's graph, new weights by name, and which of them are new parameters; all about some axes.

    `spent` names parameters whose work others do; they go where nothing reads them any more.
    """

    program: Program
    axes: Collection[Prime]
    weights: dict[str, Tensor] = field(default_factory=dict)
    added: set[str] = field(default_factory=set)
    spent: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.graph = copy_graph(self.program.graph)
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.dependencies = self.program.fact(Dependencies)
        self.readers = new_biases.count_readers(self.program)

    def done(self) -> Program:
        """The edited program."""
        names = {node: self.program.name(str(node.target)) for node in self.graph.nodes if node.op == "get_attr"}
        for node in (node for node, name in names.items() if name in self.spent and not node.users):
            self.graph.erase_node(node)
        self.graph.lint()
        gone = self.spent - {name for node, name in names.items() if node.users}
        weights = Layered((self.weights, self.program.weights))
        parameters = (self.program.parameters | self.added) - gone
        new = replace(self.program, graph=self.graph, weights=weights, parameters=parameters)
        return new.without(Dependencies)  # the axes of the old graph say nothing of the new one

    def weight(self, name: str) -> Tensor:
        """The numbers that a parameter has by now."""
        return self.weights[name] if name in self.weights else self.program.weights[name]

    def reads(self, name: str) -> list[fx.Node]:
        """The nodes that read a parameter and are used."""
        found = (n for n in self.graph.nodes if n.op == "get_attr" and self.program.name(str(n.target)) == name)
        return [node for node in found if node.users]

    def last(self, node: fx.Node) -> Axis | None:
        """The axis of the last dimension of a value of the program."""
        dims = self.dependencies.values.get(node.name)
        return resolve(dims[-1]) if isinstance(dims, tuple) and dims else None

    def maps(self, x: fx.Node) -> Iterator[Consumer | None]:
        """The linear maps that read a value, or a view of it; None for whatever else does."""
        for user in x.users:
            if user.target in VIEWS and self.last(user) in self.axes:
                yield from self.maps(user)
            else:
                yield next((c for c in self.dependencies.consumers if c.node == user.name and c.x == x.name), None)

    def own_maps(self, x: fx.Node) -> list[Consumer] | None:
        """The linear maps that read a value, if nothing else does, each with a weight of its own."""
        found = list(self.maps(x))
        alone = [c for c in found if c is not None and self.readers[c.weight] == 1]
        return alone if len(alone) == len(found) else None

    def insert(self, name: str, matrix: Tensor, x: fx.Node, users: Collection[fx.Node]) -> None:
        """Let users read a value times a new parameter."""
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
