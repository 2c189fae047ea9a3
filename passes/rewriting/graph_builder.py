"""A copy of a graph in which nodes are replaced by others that read new parameters and buffers."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from graphprune.ir.program import Program
from graphprune.ir.weights import Layered, Weights

aten = torch.ops.aten


@dataclass
class GraphBuilder:
    """A graph that is changed, and new parameters and buffers, each read by one node."""

    graph: fx.Graph
    parts: Weights
    reads: dict[str, fx.Node] = field(default_factory=dict)
    nodes: dict[str, fx.Node] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = {node.name: node for node in self.graph.nodes}

    def replace(self, name: str, make: Callable[["InsertionPoint"], fx.Node]) -> None:
        """Put the value that `make` computes in the place of a node."""
        old = self.nodes[name]
        new = make(InsertionPoint(self, old))
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

    def program(
        self, program: Program, added: Mapping[str, Sequence[str]], buffers: Collection[str], removed: Collection[str]
    ) -> Program:
        """The program with the changed graph; `added` has the new names for each weight, of which some are `buffers`.

        The weights in `removed` are no longer parameters.
        """
        self.graph.lint()
        names = [name for weight in sorted(added) for name in added[weight]]
        ties = {alias: name for alias, name in program.ties.items() if name not in removed}
        weights = Layered(({name: self.parts[name] for name in names}, program.weights))
        parameters = program.parameters.difference(removed).union(set(names).difference(buffers))
        return replace(program, graph=self.graph, weights=weights, parameters=parameters, ties=ties)


@dataclass(frozen=True)
class InsertionPoint:
    """The place before a node of a graph, where new nodes are inserted."""

    builder: GraphBuilder
    old: fx.Node

    def node(self, name: str) -> fx.Node:
        """A node of the graph, or what is in its place."""
        return self.builder.nodes[name]

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """The output of an operator."""
        with self.builder.graph.inserting_before(self.old):
            node = self.builder.graph.call_function(target, args, kwargs)
        node.meta = {**self.old.meta, "val": _fake_value(node, self.old.meta["val"].fake_mode)}
        return node

    def read(self, name: str) -> fx.Node:
        """A new parameter or buffer."""
        return self.builder.read(name, self.old)


def bias_of(node: fx.Node) -> Any:
    """The bias of a linear layer, if it has one."""
    if node.target is aten.addmm.default:
        return node.args[0]
    return node.args[2] if node.target is aten.linear.default and len(node.args) > 2 else None


def _fake_value(node: fx.Node, mode: Any) -> Any:
    args, kwargs = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (node.args, dict(node.kwargs)))
    with mode, enable_python_dispatcher():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Remove an unused node, and inputs that become unused: its weight, and views of it."""
    inputs = node.all_input_nodes
    graph.erase_node(node)
    for source in inputs:
        if not source.users and source.op != "placeholder":
            _erase(graph, source)
