"""Biases that a refit adds: where they stand, what they are called, and how a graph gets new ones."""

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from graphprune.axes.rule import Consumer
from graphprune.ir.program import Program, copy_graph
from graphprune.ir.weights import Layered


def bias_name(consumer: Consumer) -> str:
    """The name of its bias, or that which a new one gets: ``layer.weight`` has ``layer.bias``."""
    path, dot, leaf = consumer.weight.rpartition(".")
    new = "bias" if leaf == "weight" else f"{leaf}_bias"
    return consumer.bias or f"{path}{dot}{new}"


def obstacle(program: Program, consumer: Consumer) -> str | None:
    """Why nothing can be added to the outputs of a linear map alone; None if it can."""
    if consumer.bias_at is None:
        return "its operator takes no bias that is a parameter"
    if consumer.bias is not None:
        return "its bias is shared" if count_readers(program)[consumer.bias] > 1 else None
    taken = bias_name(consumer) in program.names(program.tensors())
    return f"there is another parameter called {bias_name(consumer)}" if taken else None


def add_biases(program: Program, consumers: Iterable[Consumer]) -> tuple[Program, Mapping[str, Tensor]]:
    """The program with new biases, all zero, where these linear maps have none; and those biases by name."""
    graph = copy_graph(program.graph)
    nodes = {node.name: node for node in graph.nodes}
    new: dict[str, Tensor] = {}
    for consumer in (c for c in consumers if c.bias is None and c.bias_at is not None):
        node, name = nodes[consumer.node], bias_name(consumer)
        weight = program.weights[consumer.weight]
        new[name] = weight.new_zeros(consumer.matrix(weight).shape[0])
        with graph.inserting_before(node):
            read = graph.get_attr(name)
        fake = node.meta["val"]
        with fake.fake_mode:
            read.meta["val"] = torch.zeros(new[name].shape, dtype=weight.dtype, device=fake.device)
        assert consumer.bias_at is not None
        args = [*node.args, *[None] * (consumer.bias_at + 1 - len(node.args))]
        args[consumer.bias_at] = read
        node.args = tuple(args)
    graph.lint()
    if not new:
        return program, new
    weights = Layered((new, program.weights))
    return program.with_facts(graph=graph, weights=weights, parameters=program.parameters | frozenset(new)), new


def count_readers(program: Program) -> Counter[str]:
    """How many nodes read each parameter."""
    reads = (n for node in program.graph.nodes for n in node.all_input_nodes if n.op == "get_attr")
    return Counter(program.name(str(n.target)) for n in reads)
