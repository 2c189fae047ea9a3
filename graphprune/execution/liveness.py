"""Which retained indices a proof has seen: those that are not zero in some case where a linear layer reads them."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from graphprune.axes.algebra import resolve
from graphprune.axes.groups import Dependencies, Group
from graphprune.axes.index_sets import locate

Watch = Mapping[str, Callable[[Any], None]]


@dataclass(frozen=True)
class _Reading:
    """A dimension of a value in which a group stands: the index of the group at each position, -1 for none."""

    group: str
    dim: int
    indices: Tensor


@dataclass
class Liveness:
    """The retained indices of groups that were zero so far, shape (size,), wherever linear layers read them."""

    readings: Mapping[str, Sequence[_Reading]] = field(default_factory=dict)
    dead: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, dependencies: Dependencies, rows: Mapping[str, Sequence[Sequence[int]]]) -> "Liveness":
        """Liveness of cut groups, whose retained indices are in `rows`."""
        readings, dead = defaultdict[str, list[_Reading]](list), dict[str, Tensor]()
        for name in rows:
            group = dependencies.by_name[name]
            for node, reading in _readings(dependencies, group):
                readings[node].append(reading)
                dead[name] = torch.zeros(group.size, dtype=torch.bool)
                dead[name][[index for row in rows[name] for index in row]] = True
        return cls(readings, dead)

    @property
    def watch(self) -> Watch:
        """Functions that look at values, by the name of the node that computes them."""
        return {node: self._observer(readings) for node, readings in self.readings.items()}

    def _observer(self, readings: Sequence[_Reading]) -> Callable[[Any], None]:
        def observe(value: Any) -> None:
            for reading in readings:
                dead = self.dead[reading.group]
                if dead.any() and isinstance(value, Tensor) and value.numel():
                    seen = (value.movedim(reading.dim, 0).reshape(value.shape[reading.dim], -1) != 0).any(1)
                    dead[reading.indices[seen & (reading.indices >= 0)]] = False

        return observe

    @property
    def inactive(self) -> int:
        """Number of indices that were always zero."""
        return sum(int(dead.sum()) for dead in self.dead.values())

    @property
    def unseen(self) -> tuple[str, ...]:
        """The groups with indices that were always zero, in words."""
        counts = {name: (int(dead.sum()), len(dead)) for name, dead in self.dead.items()}
        return tuple(f"{count} of {size} indices of {name}" for name, (count, size) in counts.items() if count)


def _readings(dependencies: Dependencies, group: Group) -> list[tuple[str, _Reading]]:
    """The values that linear layers read along a group."""
    found = {}
    for consumer in dependencies.consumers_of(group):
        axes = dependencies.values.get(consumer.x, ())
        dims = [
            dim
            for dim, axis in enumerate(axes)
            if not isinstance(axis, tuple) and resolve(axis) is resolve(consumer.axis)
        ]
        if dims:
            indices = torch.tensor([index for _, index in locate(consumer.axis, group.prime)])
            found[consumer.x] = _Reading(group.name, dims[0], indices)
    return list(found.items())
