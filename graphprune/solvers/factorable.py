"""Which linear layers can become a product of two factors of a low rank."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch

import torch
from torch import fx

from graphprune.axes.groups import Dependencies
from graphprune.axes.rule import Consumer
from graphprune.ir.program import Program
from graphprune.planning.budget import Budget, Knob
from graphprune.solvers import new_biases

aten = torch.ops.aten
PRODUCTS = (aten.linear.default, aten.mm.default, aten.matmul.default, aten.addmm.default)


def factorable(
    program: Program, dependencies: Dependencies, protect: Collection[str] = ()
) -> tuple[list[Consumer], dict[str, str]]:
    """The linear maps that can become factors of a low rank, in order; and the weights that cannot, with reasons."""
    found, left = [], {}
    consumers, shapes = dependencies.consumers, program.shapes()
    nodes = {node.name: node for node in program.graph.nodes}
    leads, readers = _leading(program, {c.node for c in consumers}), new_biases.count_readers(program)
    for consumer in consumers:
        node, name = nodes[consumer.node], consumer.weight
        if any(fnmatch(name, glob) for glob in protect):
            left[name] = "it is protected"
        elif len(shapes[name]) != 2 or node.target not in PRODUCTS or node.kwargs:
            left[name] = "its operator is no plain matrix product"
        elif readers[name] > 1 or not _alone(node, name, program):
            left[name] = "it is shared"
        elif not any(user in leads for user in node.users):
            left[name] = "no linear map follows, it makes outputs of the model"
        elif min(shapes[name]) > 1:
            found.append(consumer)
    return [consumer for consumer in found if consumer.weight not in left], left


def part_of_widths(
    program: Program, part: float, protect: Collection[str], knobs: Sequence[Knob], shares: Mapping[str, float]
) -> float:
    """The share of a reduction that narrower layers take, if they take `part` of that of layers that can be factorized.

    `shares` are those that groups would retain without lower ranks. What these remove from other layers, such as
    convolutions and experts, ranks cannot.
    """
    able = {consumer.weight for consumer in factorable(program, program.fact(Dependencies), protect)[0]}
    budget = Budget.of(program, knobs, 0)
    widths = budget.widths(shares)
    inside = replace(budget, parameters=frozenset(able)).removed(widths)
    return 1 - (1 - part) * inside / max(budget.removed(widths), 1)


def _leading(program: Program, maps: Collection[str]) -> set[fx.Node]:
    """The nodes from which a linear map is reached, these included."""
    found: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        if node.name in maps or any(user in found for user in node.users):
            found.add(node)
    return found


def _alone(node: fx.Node, name: str, program: Program) -> bool:
    """Is a weight, or a transposed view of it, read by this node only?"""
    reads = next(n for n in program.tensors() if program.name(str(n.target)) == name and n.users)
    while node not in reads.users and len(reads.users) == 1:
        reads = next(iter(reads.users))
    return len(reads.users) == 1
