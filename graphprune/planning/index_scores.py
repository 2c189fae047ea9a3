"""Values of the positions of a dimension, summed by the indices of a group."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from graphprune.axes.algebra import Axis, Prime, Product, primes, resolve
from graphprune.axes.contributions import Contribution
from graphprune.axes.groups import Dependencies, Group, Place
from graphprune.axes.index_sets import locate, segment
from graphprune.axes.rule import Consumer
from graphprune.ir.program import Program
from graphprune.planning.interfaces import Evidence, ScoreMethod
from graphprune.statistics.routing import RoutedSums, Routing


def rows_of(group: Group, dependencies: Dependencies) -> int:
    """The number of rows of retained indices that a group may have: one, or one for each index of its link."""
    return dependencies.by_name[group.linked].size if group.linked else 1


def chooser(place: Place, group: Group, dependencies: Dependencies) -> int | None:
    """The dimension of a parameter that selects the indices of the group in a later dimension; None if none does."""
    owner = dependencies.by_name[group.linked].prime if group.linked else None
    dims = dependencies.tensors[place.parameter]
    inside = owner is None or owner in primes(place.axis)
    return None if inside else next(i for i, axis in enumerate(dims) if resolve(axis) is owner)


def by_index(values: Tensor, axis: Axis, group: Group, dependencies: Dependencies) -> Tensor:
    """Sum the values of all positions of a dimension, shape (axis.size,), by the index of `group` at each position.

    Where another dimension selects the indices, values have the shape (rows, axis.size). Returns a tensor of shape
    (rows, group.size), one row for each index of the group that it is linked to.
    """
    owner = dependencies.by_name[group.linked].prime if group.linked else None
    start, axis = segment(axis, group.prime, owner)
    values = values.narrow(-1, start, axis.size)
    if values.dim() == 2:
        columns = torch.tensor(locate(axis, group.prime))[:, 1]
        sums = torch.zeros(len(values), group.size, dtype=values.dtype)
        return sums.index_add(1, columns[columns >= 0], values[:, columns >= 0])
    rows, columns = torch.tensor(locate(axis, group.prime, owner)).unbind(1)
    inside = columns >= 0
    sums = torch.zeros(rows_of(group, dependencies), group.size, dtype=values.dtype)
    return sums.index_put((rows[inside], columns[inside]), values[inside], accumulate=True)


def greatest(values: Tensor, axis: Axis, group: Group, dependencies: Dependencies) -> Tensor:
    """The greatest of the values, shape (axis.size,), at the positions of each index: (rows, group.size)."""
    places = positions(axis, group, dependencies)
    return values[places].amax(2)


def positions(axis: Axis, group: Group, dependencies: Dependencies) -> Tensor:
    """The positions of each index of the group in a dimension, equally many, shape (rows, group.size, count).

    There is one row in a dimension where another one selects the indices.
    """
    linked = dependencies.by_name[group.linked].prime if group.linked else None
    owner = next((p for p in primes(axis) if p is linked), None)
    start, axis = segment(axis, group.prime, owner)
    rows, columns = torch.tensor(locate(axis, group.prime, owner)).unbind(1)
    inside = (columns >= 0).nonzero()[:, 0]
    order = (rows[inside] * group.size + columns[inside]).argsort(stable=True)
    rows_in_axis = owner.size if owner else 1
    return (start + inside[order]).view(rows_in_axis, group.size, -1)


def columns_of(consumer: Consumer, group: Group, dependencies: Dependencies) -> Tensor:
    """The columns of a consumer's matrix that belong to each index of a group, shape (rows, group.size, count)."""
    places = positions(dependencies.tensors[consumer.weight][consumer.dim], group, dependencies)
    return (places[..., None] * consumer.taps + torch.arange(consumer.taps)).flatten(2)


def contributions_of(group: Group, dependencies: Dependencies) -> list[Contribution]:
    """The values whose rows belong to indices of a group that a router chooses."""
    return [c for c in dependencies.contributions if group.prime in primes(c.axis)] if group.routed else []


def routed_sums(group: Group, evidence: Evidence, value: Callable[[RoutedSums], Tensor]) -> Tensor:
    """A `value` of the rows of every contribution, shape (indices,), summed by the index of the group."""
    routing, dependencies = evidence.program.fact(Routing), evidence.dependencies
    parts = contributions_of(group, dependencies)
    sums = [by_index(value(routing.sums[c.node]), c.axis, group, dependencies) for c in parts]
    return torch.stack(sums).sum(0)


class OfExperts(ScoreMethod):
    """A score of whole experts, by the rows that each contributes."""

    routing = True

    def scored(self, program: Program, groups: Sequence[Group]) -> tuple[Group, ...]:
        """The groups that a router chooses from, with known rows."""
        dependencies = program.fact(Dependencies)
        return tuple(group for group in groups if contributions_of(group, dependencies))


class Outermost(ScoreMethod):
    """A score of neurons, channels and whole heads: contracted groups that lie inside no other free group."""

    def applies(self, group: Group, consumers: Sequence[Consumer]) -> bool:
        """Whether the method scores this group."""
        return bool(consumers) and not any(p for c in consumers for p in _around(c.axis, group.prime) if not p.pins)


class Innermost(ScoreMethod):
    """A score of innermost groups that a consumer contracts."""

    def applies(self, group: Group, consumers: Sequence[Consumer]) -> bool:
        """Whether the method scores this group."""
        return bool(consumers) and group.inner == 1


def _around(axis: Axis, inner: Prime) -> Iterator[Prime]:
    """The primes whose every index contains all of another one, in a dimension of this structure."""
    axis = resolve(axis)
    if isinstance(axis, Prime):
        return
    for i, part in enumerate(axis.parts):
        if inner in primes(part):
            yield from (p for other in axis.parts[:i] if isinstance(axis, Product) for p in primes(other))
            yield from _around(part, inner)


def at_consumers(group: Group, evidence: Evidence, value: Callable[[Consumer], Tensor], mean: bool = False) -> Tensor:
    """The sum of a `value` of the columns of every consumer, shape (columns * taps,), by the index of the group.

    Values of one index are added up, or averaged with `mean`, within a consumer, and added up over the consumers. The
    result has the shape (rows, group.size). A member of a stack adds to its own row, where the stack selects the
    indices.
    """
    dependencies = evidence.dependencies
    total = torch.zeros(rows_of(group, dependencies), group.size, dtype=torch.float64)
    for consumer in (*dependencies.consumers_of(group), *dependencies.members_of(group)):
        columns = value(consumer).double().reshape(-1, consumer.taps).sum(1)
        axis = dependencies.tensors[consumer.weight][consumer.dim]
        row = own_row(consumer, group, dependencies)
        columns, rows = (columns, slice(None)) if row is None else (columns[None], slice(row, row + 1))
        sums = by_index(columns, axis, group, dependencies)
        total[rows] += sums / by_index(torch.ones_like(columns), axis, group, dependencies) if mean else sums
    return total


def own_row(consumer: Consumer, group: Group, dependencies: Dependencies) -> int | None:
    """The row of a group that a member of a stack reads; None if it reads all of them."""
    place = next((p for p in group.places if (p.parameter, p.dim) == (consumer.weight, consumer.dim)), None)
    if consumer.member is None or place is None:
        return None
    return consumer.member.index if chooser(place, group, dependencies) == consumer.member.dim else None


def at_producers(group: Group, evidence: Evidence, value: Callable[[Consumer], Tensor]) -> Tensor:
    """The sum of a `value` of the rows of every producer, shape (rows * taps,), by the index of the group."""
    dependencies = evidence.dependencies
    total = torch.zeros(rows_of(group, dependencies), group.size, dtype=torch.float64)
    for producer in dependencies.producers_of(group):
        axis = dependencies.tensors[producer.weight][1 - producer.dim]
        rows = value(producer).double().reshape(axis.size, -1).sum(1)
        total += by_index(rows, axis, group, dependencies)
    return total


def at_places(group: Group, evidence: Evidence, value: Callable[[str], Tensor]) -> list[Tensor]:
    """For every parameter and dimension in which the group stands, the sum of its `value` at every index."""
    dependencies = evidence.dependencies
    sums = []
    for place in group.places:
        if place.parameter in evidence.program.parameters:
            weight = value(place.parameter).double()
            own = (place.dim, chooser(place, group, dependencies))
            other = [dim for dim in range(weight.dim()) if dim not in own]
            sums.append(by_index(weight.sum(other) if other else weight, place.axis, group, dependencies))
    return sums
