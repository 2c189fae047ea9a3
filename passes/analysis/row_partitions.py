"""Row partitions: the rows of a value are a ragged batch over an axis, stored one index after the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from graphprune.axes.algebra import Axis, primes, resolve
from graphprune.axes.contributions import Contribution
from graphprune.axes.rule import Dims, Rule
from graphprune.passes.analysis.index_values import contributing_inputs
from graphprune.registry import Registry


@dataclass
class RowPartitions:
    """Values whose rows are partitioned over an axis, with the axis and the node that holds the offsets.

    Such a value depends on the axis without having a dimension for it: every row belongs to one of its indices.
    """

    table: dict[fx.Node, tuple[Axis, object]] = field(default_factory=dict)

    def add(self, node: fx.Node, axis: Axis, offsets: object) -> None:
        """Note that the rows of a value belong to indices of an axis: index i owns those up to offsets[i]."""
        self.table[node] = axis, offsets

    def holds(self, value: object, offsets: object) -> bool:
        """Whether the rows of a value are partitioned by these offsets."""
        partition = self.table.get(value) if isinstance(value, fx.Node) else None
        return partition is not None and partition[1] is offsets

    def contributions(self, rules: Registry[Any, Rule]) -> tuple[Contribution, ...]:
        """The last value of each partition that is computed from the rows, such as the weighted outputs of experts."""
        last: dict[fx.Node, Contribution] = {}
        for node, (axis, offsets) in self.table.items():
            rule = rules.get(node.target)
            if isinstance(offsets, fx.Node) and rule is not None and not rule.shape_alone:
                last[offsets] = Contribution(node.name, offsets.name, resolve(axis))
        return tuple(last.values())

    def follow(self, node: fx.Node, rule: Rule | None, outputs: Callable[[fx.Node], Sequence[Dims]]) -> None:
        """Carry a partition over to the result of an operator that works row by row."""
        rowwise = rule is not None and rule.rowwise
        partitioned = [n for n in contributing_inputs(node, rule) if n in self.table] if rowwise else []
        rows = [_rows(dims) for n in (node, *partitioned) for dims in outputs(n)]
        if len({id(self.table[n][1]) for n in partitioned}) == 1 and all(each == rows[0] for each in rows):
            self.table.setdefault(node, self.table[partitioned[0]])


def _rows(dims: Dims) -> object:
    """Key of a value's rows: the number of dimensions, and the size and primes of the first."""
    return len(dims), *([dims[0].size, list(primes(dims[0]))] if dims else [])
