"""Rows that were dealt out along an axis: the first ones belong to its first index, and so on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import fx

from graphprune.axes.algebra import Axis, primes
from graphprune.axes.rule import Dims, Rule
from graphprune.passes.analysis.index_values import parts


@dataclass
class Deals:
    """Which values have dealt rows, along which axis, and the node that says where the rows of each index end.

    Such a value has the axis, too, though no dimension of it: every row belongs to one of its indices.
    """

    table: dict[fx.Node, tuple[Axis, object]] = field(default_factory=dict)

    def deal(self, node: fx.Node, axis: Axis, ends: object) -> None:
        """Note that the rows of a value belong to indices of an axis, up to these ends."""
        self.table[node] = axis, ends

    def holds(self, value: object, ends: object) -> bool:
        """Were the rows of a value dealt out by the same ends?"""
        found = self.table.get(value) if isinstance(value, fx.Node) else None
        return found is not None and found[1] is ends

    def follow(self, node: fx.Node, rule: Rule | None, outputs: Callable[[fx.Node], Sequence[Dims]]) -> None:
        """What works row by row leaves rows where they are."""
        dealt = [n for n in parts(node, rule) if n in self.table] if rule is not None and rule.rowwise else []
        rows = [_rows(dims) for n in (node, *dealt) for dims in outputs(n)]
        if len({id(self.table[n][1]) for n in dealt}) == 1 and all(each == rows[0] for each in rows):
            self.table.setdefault(node, self.table[dealt[0]])


def _rows(dims: Dims) -> object:
    """How many dimensions there are, and what the first is."""
    return len(dims), list(primes(dims[0])) if dims else []
