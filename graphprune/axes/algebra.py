"""The algebra of tensor axes: primes, products and sums, and the four operations on them.

An axis is one of

* a `Prime` of some size: the unit that can be narrowed;
* a `Product` of axes, outermost first: ``(heads, head_dim)`` flattened to one dimension;
* a `Sum` of axes, in order: the segments of a concatenation.

Primes live in a union-find: `unify` makes two of them one, or binds a prime to a composite. `factor`
sees an axis as ``(outer, rest)``, `cut` as consecutive segments, `pin` forbids narrowing, with a reason.
Where two structures cannot be aligned, both are pinned: a freedom may be missed, never invented.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count, pairwise
from math import prod

REASONS = 4  # so many are kept for an axis that cannot be cut
_serial = count()


class Misaligned(Exception):  # noqa: N818 - control flow inside the algebra, never seen by a user
    """Two structures have no common refinement."""


@dataclass(eq=False)
class Prime:
    """An axis that can be narrowed as a whole; `bound` is what it turned out to be."""

    size: int
    pins: list[str] = field(default_factory=list)
    bound: "Axis | None" = None
    serial: int = field(default_factory=lambda: next(_serial))

    def __repr__(self) -> str:
        return f"{self.size}{'!' if self.pins else ''}"


@dataclass(frozen=True, eq=False)
class Product:
    """Axes flattened into one dimension, outermost first; the empty product is the axis of size 1."""

    parts: tuple["Axis", ...]

    @property
    def size(self) -> int:
        return prod(part.size for part in self.parts)

    def __repr__(self) -> str:
        return "(" + " x ".join(map(repr, self.parts)) + ")" if self.parts else "1"


@dataclass(frozen=True, eq=False)
class Sum:
    """Axes laid one after another in one dimension."""

    parts: tuple["Axis", ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def __repr__(self) -> str:
        return "(" + " | ".join(map(repr, self.parts)) + ")"


Axis = Prime | Product | Sum
UNIT = Product(())


def prime(size: int, *pins: str) -> Axis:
    """A fresh axis of `size`; of size 1 it is `UNIT`, which has nothing to cut."""
    return UNIT if size == 1 else Prime(size, list(pins))


def resolve(axis: Axis) -> Axis:
    """What `axis` is by now: bindings followed, nested products and sums flattened."""
    if isinstance(axis, Prime):
        if axis.bound is None:
            return axis
        axis.bound = resolve(axis.bound)
        return axis.bound
    parts = [resolve(part) for part in axis.parts]
    return product(parts) if isinstance(axis, Product) else total(parts)


def product(parts: Sequence[Axis]) -> Axis:
    """The flat product of resolved axes; one part alone stands for itself."""
    flat = [p for part in parts for p in (part.parts if isinstance(part, Product) else (part,))]
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def total(parts: Sequence[Axis]) -> Axis:
    """The flat sum of resolved axes, without empty segments."""
    flat = [p for part in parts for p in (part.parts if isinstance(part, Sum) else (part,)) if p.size]
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def primes(axis: Axis) -> Iterator[Prime]:
    """Every prime in `axis`, in order, as often as it stands there."""
    axis = resolve(axis)
    if isinstance(axis, Prime):
        yield axis
        return
    for part in axis.parts:
        yield from primes(part)


def flat(dims: Iterable[Axis | tuple[Axis, ...]]) -> list[Axis]:
    """The axes of a value; of one with several outputs, those of each, one output after the other."""
    return [axis for item in dims for axis in (item if isinstance(item, tuple) else (item,))]


def pin(axis: Axis, reason: str) -> None:
    """Forbid narrowing any prime of `axis`; the first reasons are kept."""
    for p in primes(axis):
        if reason not in p.pins and len(p.pins) < REASONS:
            p.pins.append(reason)


def unify(a: Axis, b: Axis, reason: str = "shapes that cannot be aligned") -> None:
    """Make `a` and `b` the same axis; where they cannot be aligned, pin both for `reason`."""
    try:
        align(a, b)
    except Misaligned as fault:
        for axis in (a, b):
            pin(axis, f"{reason} ({fault})")


def align(a: Axis, b: Axis) -> None:
    """Make `a` and `b` the same axis.

    Raises:
        Misaligned: if they have no common refinement; they must both be pinned then, for some of it may be unified.
    """
    a, b = resolve(a), resolve(b)
    if a is not b:
        _unify(a, b)


def factor(axis: Axis, outer: int) -> tuple[Axis, Axis]:
    """See `axis` as ``(outer, rest)``.

    Raises:
        Misaligned: if its structure has no boundary there.
    """
    axis = resolve(axis)
    if outer < 1 or axis.size % outer:
        raise Misaligned(f"{axis} does not split into {outer} equal parts")
    rest = axis.size // outer
    if outer == 1 or rest == 1:
        return (UNIT, axis) if outer == 1 else (axis, UNIT)
    if isinstance(axis, Prime):
        halves = (Prime(outer), Prime(rest))
        _bind(axis, Product(halves))
        return halves
    return _factor_product(axis, outer) if isinstance(axis, Product) else _factor_sum(axis, rest)


def cut(axis: Axis, sizes: Sequence[int]) -> tuple[Axis, ...]:
    """See `axis` as consecutive segments of `sizes`, which add up to its size.

    Raises:
        Misaligned: if its structure has no boundaries there.
    """
    axis = resolve(axis)
    if sum(sizes) != axis.size or min(sizes, default=0) < 0:
        raise Misaligned(f"{axis} has size {axis.size}, it does not split into {list(sizes)}")
    if len(sizes) == 1:
        return (axis,)
    if isinstance(axis, Prime):
        segments = tuple(prime(size) for size in sizes)
        _bind(axis, total(segments))
        return segments
    return _cut_product(axis, sizes) if isinstance(axis, Product) else _cut_sum(axis, sizes)


def _bind(p: Prime, to: Axis) -> None:
    """Let `p` be `to` from now on; its pins hold for every prime in there."""
    if any(q is p for q in primes(to)):
        raise Misaligned(f"an axis of size {p.size} would contain itself")
    p.bound = to
    for reason in p.pins:
        pin(to, reason)


def _unify(a: Axis, b: Axis) -> None:
    a, b = resolve(a), resolve(b)
    if a is b:
        return
    if a.size != b.size:
        raise Misaligned(f"size {a.size} meets size {b.size}")
    if isinstance(a, Prime):
        return _bind(a, b)
    if isinstance(b, Prime):
        return _bind(b, a)
    if isinstance(a, Sum) or isinstance(b, Sum):
        return _unify_segments(a, b)
    _unify_factors(list(a.parts), list(b.parts))


def _unify_segments(a: Axis, b: Axis) -> None:
    """Cut both at the boundaries of whichever is a sum, and unify segment by segment."""
    if not isinstance(a, Sum):
        a, b = b, a
    assert isinstance(a, Sum)
    for x, y in zip(a.parts, cut(b, [part.size for part in a.parts]), strict=True):
        _unify(x, y)


def _unify_factors(left: list[Axis], right: list[Axis]) -> None:
    """Walk two products from the outside; where one factor is larger, factor it."""
    while left and right:
        x, y = resolve(left.pop(0)), resolve(right.pop(0))
        if x.size < y.size:
            left, right, x, y = right, left, y, x
        if x.size % y.size:
            raise Misaligned(f"a factor of {x.size} meets one of {y.size}")
        outer, rest = factor(x, y.size)
        if rest.size > 1:
            left.insert(0, rest)
        _unify(outer, y)


def _factor_product(axis: Product, outer: int) -> tuple[Axis, Axis]:
    """Put the boundary between two factors, or inside the one that straddles it."""
    head: list[Axis] = []
    for i, part in enumerate(axis.parts):
        done = prod(p.size for p in head)
        if done == outer:
            return product(head), product([resolve(p) for p in axis.parts[i:]])
        if outer % done or (part.size > outer // done and part.size % (outer // done)):
            raise Misaligned(f"{axis} has no boundary at {outer}")
        if part.size > outer // done:
            first, rest = factor(part, outer // done)
            return product([*head, first]), product([rest, *axis.parts[i + 1 :]])
        head.append(part)
    raise Misaligned(f"{axis} has no boundary at {outer}")


def _factor_sum(axis: Sum, rest: int) -> tuple[Axis, Axis]:
    """Factor every segment, and make the inner parts one axis."""
    if any(part.size % rest for part in axis.parts):
        raise Misaligned(f"{axis} has segments that are no multiples of {rest}")
    pairs = [factor(part, part.size // rest) for part in axis.parts]
    for _, inner in pairs[1:]:
        _unify(pairs[0][1], inner)
    return total([resolve(outer) for outer, _ in pairs]), resolve(pairs[0][1])


def _cut_product(axis: Product, sizes: Sequence[int]) -> tuple[Axis, ...]:
    """Cut the outermost factor; boundaries must fall between its indices."""
    if not axis.parts:
        return tuple(prime(size) for size in sizes)
    first, rest = axis.parts[0], product(axis.parts[1:]) if len(axis.parts) > 1 else UNIT
    if any(size % rest.size for size in sizes):
        raise Misaligned(f"{axis} cannot be cut into {list(sizes)}")
    outers = cut(first, [size // rest.size for size in sizes])
    return tuple(product([resolve(outer), resolve(rest)]) for outer in outers)


def _cut_sum(axis: Sum, sizes: Sequence[int]) -> tuple[Axis, ...]:
    """Cut segments where a boundary falls inside them, then gather them anew."""
    ends = set(accumulate(sizes))
    pieces: list[Axis] = []
    start = 0
    for part in axis.parts:
        inside = sorted(end - start for end in ends if start < end < start + part.size)
        bounds = [0, *inside, part.size]
        pieces += cut(part, [high - low for low, high in pairwise(bounds)])
        start += part.size
    return tuple(_gather(pieces, sizes))


def _gather(pieces: list[Axis], sizes: Sequence[int]) -> Iterator[Axis]:
    """Join consecutive pieces to segments of `sizes`."""
    queue = iter(pieces)
    for size in sizes:
        parts: list[Axis] = []
        while sum(part.size for part in parts) < size:
            parts.append(resolve(next(queue)))
        yield total(parts) if parts else Sum(())


def resolve_prime(p: Prime) -> Prime:
    """The prime that `p` is by now.

    Raises:
        Misaligned: if it has become a composite.
    """
    axis = resolve(p)
    if not isinstance(axis, Prime):
        raise Misaligned(f"{p} has become {axis}")
    return axis
