"""Linked index sets: which axis may keep other indices at every index of another one beside it."""

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import fx

from graphprune.axes.algebra import Axis, Prime, Product, Sum, primes, resolve
from graphprune.axes.rule import Dims
from graphprune.passes.analysis.axis_flow import AxisFlow

Places = Mapping[Prime, list[tuple[str, int]]]
Beside = dict[Prime, frozenset[Prime]]


def links(flow: AxisFlow, places: Places) -> dict[Prime, Prime]:
    """For every prime the one around it, in every value and at every place, that may choose its indices.

    Where indices of one axis are summed or compared, they must agree on what is kept of all others.
    """
    around = _everywhere([_beside(dims) for node in flow.values for dims in _all(flow, node)])
    for p in around:
        for name, dim in places.get(p, ()):
            dims = flow.tensors[name]
            around[p] &= _outside(resolve(dims[dim]))[p] | _before(dims, dim)
    for inner, outer in flow.mixed:
        _part(around, inner, outer)
    for node, axis in flow.summed:
        # An axis that is summed and stands in the result none the less came there by another operand.
        summed = set(primes(axis))
        left = [p for dims in (flow.outputs(node) if node else ()) for other in dims for p in primes(other)]
        _part(around, [p for p in left if p not in summed], [axis])
    free = {p: [q for q in owners if not q.pins and q.size > 1] for p, owners in around.items() if not p.pins}
    return {p: max(owners, key=lambda q: q.size) for p, owners in free.items() if owners}


def _part(around: Beside, inner: Sequence[Axis], outer: Sequence[Axis]) -> None:
    """Primes of `inner` may not choose by those of `outer`, whose indices meet each other."""
    rivals = {q for axis in outer for q in primes(axis)}
    for p in {p for axis in inner for p in primes(axis)} & around.keys():
        around[p] -= rivals


def _all(flow: AxisFlow, node: fx.Node) -> list[Dims]:
    """The axes of every output, with the one along which its rows were dealt out."""
    hidden = flow.row_partitions.table.get(node)
    return [(hidden[0], *dims) if hidden else dims for dims in flow.outputs(node)]


def _beside(dims: Sequence[Axis]) -> Beside:
    """For every prime the ones that have an index wherever it has one; what stands twice, side by side, has none."""
    parts = [resolve(axis) for axis in dims]
    inner = [_inside(part) for part in parts]
    seen = Counter(p for found in inner for p in found)
    certain = [frozenset(p for p in _certain(part) if seen[p] == 1) for part in parts]
    result: Beside = dict.fromkeys(seen, frozenset())
    for i, found in enumerate(inner):
        others = frozenset[Prime]().union(*certain[:i], *certain[i + 1 :])
        result |= {p: (own | others) for p, own in found.items() if seen[p] == 1}
    return result


def _inside(axis: Axis) -> Beside:
    if isinstance(axis, Prime):
        return {axis: frozenset()}
    return _beside(axis.parts) if isinstance(axis, Product) else _everywhere([_inside(part) for part in axis.parts])


def _certain(axis: Axis) -> frozenset[Prime]:
    """The primes that have an index at every index of an axis."""
    if isinstance(axis, Prime):
        return frozenset({axis})
    parts = [_certain(part) for part in axis.parts]
    return frozenset[Prime]().union(*parts) if isinstance(axis, Product) else parts[0].intersection(*parts)


def _outside(axis: Axis) -> Beside:
    """For every prime of a dimension the primes around it in a product; those of every segment in which it stands."""
    if isinstance(axis, Prime):
        return {axis: frozenset()}
    parts = [_outside(part) for part in axis.parts]
    if isinstance(axis, Sum):
        return _everywhere(parts)
    around = [frozenset(q for q in axis.parts[:i] if isinstance(q, Prime)) for i in range(len(parts))]
    return _everywhere([{p: own | outer for p, own in part.items()} for part, outer in zip(parts, around, strict=True)])


def _everywhere(parts: Sequence[Beside]) -> Beside:
    """What holds for a prime in every part in which it stands."""
    result: Beside = {}
    for p, own in (pair for part in parts for pair in part.items()):
        result[p] = result[p] & own if p in result else own
    return result


def _before(dims: Dims, dim: int) -> frozenset[Prime]:
    """The primes that are a dimension of their own, before the one at `dim`."""
    return frozenset(axis for axis in map(resolve, dims[:dim]) if isinstance(axis, Prime))
