"""Linked axes: an axis that may retain other indices at every index of another axis, such as channels per head."""

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import fx

from graphprune.axes.algebra import Axis, Prime, Product, Sum, primes, resolve
from graphprune.axes.rule import Dims
from graphprune.passes.analysis.axis_flow import AxisFlow

Places = Mapping[Prime, list[tuple[str, int]]]
Related = dict[Prime, frozenset[Prime]]


def links(flow: AxisFlow, places: Places) -> dict[Prime, Prime]:
    """For every prime the owner whose indices may retain different indices of it, in all values and parameters.

    Indices of an axis that is summed or compared must retain the same indices of all other axes.
    """
    candidates = _in_every_part([_related(dims) for node in flow.values for dims in _dims_with_partition(flow, node)])
    for (name, dim), inside in _by_place(places).items():
        enclosing, preceding = _enclosing(flow.tensors[name][dim]), _preceding(flow.tensors[name], dim)
        for p in inside & candidates.keys():
            candidates[p] &= enclosing[p] | preceding
    for inner, outer in flow.mixed:
        _separate(candidates, inner, outer)
    for node, axis in flow.summed:
        # A summed axis that is also in the result belongs to another operand.
        summed = set(primes(axis))
        remaining = [p for dims in (flow.outputs(node) if node else ()) for other in dims for p in primes(other)]
        _separate(candidates, [p for p in remaining if p not in summed], [axis])
    free = {p: [q for q in owners if not q.pins and q.size > 1] for p, owners in candidates.items() if not p.pins}
    return {p: max(owners, key=lambda q: q.size) for p, owners in free.items() if owners}


def _by_place(places: Places) -> dict[tuple[str, int], set[Prime]]:
    """The primes of every dimension."""
    inside: dict[tuple[str, int], set[Prime]] = {}
    for p, place in ((p, place) for p, own in places.items() for place in own):
        inside.setdefault(place, set()).add(p)
    return inside


def _separate(around: Related, inner: Sequence[Axis], outer: Sequence[Axis]) -> None:
    """Remove the primes of `outer` from the possible owners of those of `inner`."""
    rivals = {q for axis in outer for q in primes(axis)}
    for p in {p for axis in inner for p in primes(axis)} & around.keys():
        around[p] -= rivals


def _dims_with_partition(flow: AxisFlow, node: fx.Node) -> list[Dims]:
    """Axes of every output, with the one over which its rows are partitioned."""
    hidden = flow.row_partitions.table.get(node)
    return [(hidden[0], *dims) if hidden else dims for dims in flow.outputs(node)]


def _related(dims: Sequence[Axis]) -> Related:
    """For every prime the ones that have an index wherever it has one; none for a prime that occurs twice."""
    parts = [resolve(axis) for axis in dims]
    inner = [_related_inside(part) for part in parts]
    occurrences = Counter(p for related in inner for p in related)
    present = [frozenset(p for p in _always_present(part) if occurrences[p] == 1) for part in parts]
    result: Related = dict.fromkeys(occurrences, frozenset())
    for i, related in enumerate(inner):
        others = frozenset[Prime]().union(*present[:i], *present[i + 1 :])
        result |= {p: (own | others) for p, own in related.items() if occurrences[p] == 1}
    return result


def _related_inside(axis: Axis) -> Related:
    if isinstance(axis, Prime):
        return {axis: frozenset()}
    if isinstance(axis, Product):
        return _related(axis.parts)
    return _in_every_part([_related_inside(part) for part in axis.parts])


def _always_present(axis: Axis) -> frozenset[Prime]:
    """Primes that have an index at every index of an axis."""
    if isinstance(axis, Prime):
        return frozenset({axis})
    parts = [_always_present(part) for part in axis.parts]
    return frozenset[Prime]().union(*parts) if isinstance(axis, Product) else parts[0].intersection(*parts)


def _enclosing(axis: Axis) -> Related:
    """For every prime of a dimension the primes before it in its product, in every segment in which it occurs."""
    if isinstance(axis, Prime):
        return {axis: frozenset()}
    parts = [_enclosing(part) for part in axis.parts]
    if isinstance(axis, Sum):
        return _in_every_part(parts)
    before = [frozenset(q for q in axis.parts[:i] if isinstance(q, Prime)) for i in range(len(parts))]
    pairs = zip(parts, before, strict=True)
    return _in_every_part([{p: own | outer for p, own in part.items()} for part, outer in pairs])


def _in_every_part(parts: Sequence[Related]) -> Related:
    """Primes related to a prime in every part in which it occurs."""
    result: Related = {}
    for p, own in (pair for part in parts for pair in part.items()):
        result[p] = result[p] & own if p in result else own
    return result


def _preceding(dims: Dims, dim: int) -> frozenset[Prime]:
    """Primes that are whole dimensions before `dim`."""
    return frozenset(axis for axis in map(resolve, dims[:dim]) if isinstance(axis, Prime))
