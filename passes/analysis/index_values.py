"""Which values hold indices, and which axis they are indices into."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import getitem
from typing import cast

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.axes.algebra import Axis, primes
from graphprune.axes.rule import Rule, Zeros

aten = torch.ops.aten
COPIES = {aten.clone.default, aten._to_copy.default, aten.alias.default, aten.detach.default, aten.contiguous.default}


@dataclass
class Pointers:
    """What picks indices of an axis, a `topk` say, and what only moves them, makes values that point into the axis.

    Such values may look up the same axis elsewhere: both are cut alike, so that they mean the same before and after.
    Whatever else is done with them would see other numbers after a cut.
    """

    table: dict[tuple[fx.Node, int], Axis] = field(default_factory=dict)

    def mark(self, value: fx.Node, output: int, axis: Axis) -> None:
        """Note that the integers in an output of a node are indices into the axis."""
        self.table[value, output] = axis

    def of(self, value: object) -> Axis | None:
        """The axis that a value points into."""
        return self.table.get((value, 0)) if isinstance(value, fx.Node) else None

    def follow(self, node: fx.Node, rule: Rule | None) -> Sequence[Axis]:
        """Note what becomes of the indices among the inputs of a node.

        Returns the axes whose indices are computed with, or leave the graph.
        """
        if node.target is getitem:
            found = self.table.get(cast(tuple[fx.Node, int], node.args))
            self._pass(node, [] if found is None else [found])
            return ()
        values = list(parts(node, rule))
        pointed = [axis for value in values if (axis := self.of(value)) is not None]
        if rule is not None and _moves(node, rule) and len(pointed) == len(values) and _are_one(pointed):
            self._pass(node, pointed)
            return ()
        return pointed

    def _pass(self, node: fx.Node, axes: Sequence[Axis]) -> None:
        """The outputs point where the inputs did, but for those of which the rule knows better."""
        val = node.meta["val"]
        for axis in axes[:1]:
            for output in range(1 if isinstance(val, Tensor) else len(val)):
                self.table.setdefault((node, output), axis)


def parts(node: fx.Node, rule: Rule | None) -> Iterator[fx.Node]:
    """The values of which the result is made: all inputs but those that only select."""
    selects = rule.selects if rule else ()
    if not selects:
        yield from node.all_input_nodes
        return
    chosen = [[argument for i, argument in enumerate(node.args) if i not in selects], list(node.kwargs.values())]
    for leaf in pytree.tree_leaves(chosen):
        if isinstance(leaf, fx.Node):
            yield leaf


def _moves(node: fx.Node, rule: Rule) -> bool:
    """Are the numbers of the result those of the inputs?"""
    return rule.zeros is Zeros.MOVED or node.target in COPIES


def _are_one(axes: Sequence[Axis]) -> bool:
    """Do they consist of the same primes?"""
    first, *others = [list(primes(axis)) for axis in axes] or [[]]
    return all(other == first for other in others)
