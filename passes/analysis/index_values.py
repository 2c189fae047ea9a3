"""Index values: values that hold indices, with the axis into which they point."""

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
    """Values that point into an axis: results of operators that select indices, such as `topk`, moved by others.

    Such values may index other values with the same axis: both are cut alike, so that their meaning is unchanged. Any
    other use would see different numbers after a cut.
    """

    table: dict[tuple[fx.Node, int], Axis] = field(default_factory=dict)

    def mark(self, value: fx.Node, output: int, axis: Axis) -> None:
        """Note that the integers in an output of a node are indices into the axis."""
        self.table[value, output] = axis

    def of(self, value: object) -> Axis | None:
        """The axis that a value points into."""
        return self.table.get((value, 0)) if isinstance(value, fx.Node) else None

    def follow(self, node: fx.Node, rule: Rule | None) -> Sequence[Axis]:
        """Propagate the indices among the inputs of a node to its outputs.

        Returns the axes whose indices are used in a computation or are graph outputs.
        """
        if node.target is getitem:
            pointee = self.table.get(cast(tuple[fx.Node, int], node.args))
            self._propagate(node, [] if pointee is None else [pointee])
            return ()
        values = list(contributing_inputs(node, rule))
        pointed = [axis for value in values if (axis := self.of(value)) is not None]
        if rule is not None and _only_moves(node, rule) and len(pointed) == len(values) and _have_same_primes(pointed):
            self._propagate(node, pointed)
            return ()
        return pointed

    def _propagate(self, node: fx.Node, axes: Sequence[Axis]) -> None:
        """Let the outputs point into the axis of the inputs, unless the rule has set another one."""
        val = node.meta["val"]
        for axis in axes[:1]:
            for output in range(1 if isinstance(val, Tensor) else len(val)):
                self.table.setdefault((node, output), axis)


def contributing_inputs(node: fx.Node, rule: Rule | None) -> Iterator[fx.Node]:
    """Inputs that contribute values to the result: all but those that only select."""
    selects = rule.selects if rule else ()
    if not selects:
        yield from node.all_input_nodes
        return
    arguments = [[argument for i, argument in enumerate(node.args) if i not in selects], list(node.kwargs.values())]
    for leaf in pytree.tree_leaves(arguments):
        if isinstance(leaf, fx.Node):
            yield leaf


def _only_moves(node: fx.Node, rule: Rule) -> bool:
    """Whether the numbers of the result are those of the inputs."""
    return rule.zeros is Zeros.MOVED or node.target in COPIES


def _have_same_primes(axes: Sequence[Axis]) -> bool:
    """Whether the axes consist of the same primes."""
    first, *others = [list(primes(axis)) for axis in axes] or [[]]
    return all(other == first for other in others)
