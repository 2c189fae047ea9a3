"""Algebra of tensor axes: primes, products and sums, and the four operations on them.

An axis is one of

* a `Prime` of some size: the unit that can be pruned;
* a `Product` of axes, outermost first: ``(heads, head_dim)`` flattened to one dimension;
* a `Sum` of axes, in order: the segments of a concatenation.

Primes form a union-find: `unify` merges two of them, or binds a prime to a composite. `factor` splits an axis into
``(outer, rest)``, `split_axis` into consecutive segments, and `pin` forbids pruning it, with a reason. Where two
structures cannot be aligned, both are pinned: a possible cut may be missed, an impossible one is never offered.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, count, pairwise
from math import prod

MAX_REASONS = 4  # recorded for an axis that cannot be pruned
_serial = count()


class Misaligned(Exception):  # noqa: N818 - control flow inside the algebra, never seen by a user
    """Two structures have no common refinement."""


@dataclass(eq=False)
class Prime:
    """An indivisible axis, the unit of pruning; `bound` is the axis to which it was unified."""

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

    @cached_property
    def size(self) -> int:
        return prod(part.size for part in self.parts)

    def __repr__(self) -> str:
        return "(" + " x ".join(map(repr, self.parts)) + ")" if self.parts else "1"


@dataclass(frozen=True, eq=False)
class Sum:
    """Axes concatenated in one dimension."""

    parts: tuple["Axis", ...]

    @cached_property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @cached_property
    def places(self) -> Mapping[Prime, tuple[int, tuple["Axis", ...]]]:
        """The start of the first segment in which a prime stands, and all of these, of an axis in its final form."""
        known: dict[Prime, tuple[int, tuple[Axis, ...]]] = {}
        for start, part in zip(accumulate((part.size for part in self.parts), initial=0), self.parts, strict=False):
            for p in set(primes(part)):
                first, parts = known.get(p, (start, ()))
                known[p] = first, (*parts, part)
        return known

    def __repr__(self) -> str:
        return "(" + " | ".join(map(repr, self.parts)) + ")"


Axis = Prime | Product | Sum
UNIT = Product(())


def prime(size: int, *pins: str) -> Axis:
    """A fresh axis of `size`; `UNIT` for size 1, which cannot be pruned."""
    return UNIT if size == 1 else Prime(size, list(pins))


def resolve(axis: Axis) -> Axis:
    """The current form of `axis`: bindings followed, nested products and sums flattened.

    Chains of bindings are as long as a model is deep, so they are followed without recursion, and shortened.
    """
    if _is_resolved(axis):
        return axis
    forms: dict[Axis, Axis] = {}
    stack = [axis]
    while stack:
        inner = _inner(stack[-1])
        unknown = [part for part in inner if part not in forms]
        stack += unknown
        if not unknown:
            current = stack.pop()
            forms[current] = _form(current, [forms[part] for part in inner])
    return forms[axis]


def _is_resolved(axis: Axis) -> bool:
    """Whether `axis` is in its current form."""
    stack = [axis]
    while stack:
        part = stack.pop()
        if isinstance(part, Prime):
            if part.bound is not None:
                return False
        elif len(part.parts) == 1 or any(_dissolves(inner, part) for inner in part.parts):
            return False
        else:
            stack += part.parts
    return True


def _dissolves(part: Axis, whole: Product | Sum) -> bool:
    """Whether a part is flattened into its composite, or is an empty segment."""
    return type(part) is type(whole) or (isinstance(whole, Sum) and not part.size)


def _inner(axis: Axis) -> tuple[Axis, ...]:
    """The axes on which the current form of `axis` depends."""
    if isinstance(axis, Prime):
        return () if axis.bound is None else (axis.bound,)
    return axis.parts


def _form(axis: Axis, inner: list[Axis]) -> Axis:
    """The current form of `axis` from those of its inner axes; a prime is bound to it directly."""
    if not isinstance(axis, Prime):
        return product(inner) if isinstance(axis, Product) else direct_sum(inner)
    if inner:
        axis.bound = inner[0]
    return inner[0] if inner else axis


def product(parts: Sequence[Axis]) -> Axis:
    """The flat product of resolved axes; the axis itself where there is one."""
    factors = [p for part in parts for p in (part.parts if isinstance(part, Product) else (part,))]
    return factors[0] if len(factors) == 1 else Product(tuple(factors))


def direct_sum(parts: Sequence[Axis]) -> Axis:
    """The flat sum of resolved axes, without empty segments; the axis itself where there is one."""
    segments = [p for part in parts for p in (part.parts if isinstance(part, Sum) else (part,)) if p.size]
    return segments[0] if len(segments) == 1 else Sum(tuple(segments))


def primes(axis: Axis) -> Iterator[Prime]:
    """The primes of `axis`, in order, with repetitions."""
    stack = [resolve(axis)]
    while stack:
        part = stack.pop()
        if isinstance(part, Prime):
            yield part
        else:
            stack += reversed(part.parts)


def flatten_outputs(dims: Iterable[Axis | tuple[Axis, ...]]) -> list[Axis]:
    """The axes of a value as one list; those of several outputs follow each other."""
    return [axis for item in dims for axis in (item if isinstance(item, tuple) else (item,))]


def pin(axis: Axis, reason: str) -> None:
    """Forbid pruning any prime of `axis`; the first `MAX_REASONS` reasons are recorded."""
    for p in primes(axis):
        if reason not in p.pins and len(p.pins) < MAX_REASONS:
            p.pins.append(reason)


def unify(a: Axis, b: Axis, reason: str = "shapes that cannot be aligned") -> None:
    """Make `a` and `b` the same axis; pin both for `reason` where they cannot be aligned."""
    try:
        align(a, b)
    except Misaligned as fault:
        for axis in (a, b):
            pin(axis, f"{reason} ({fault})")


def align(a: Axis, b: Axis) -> None:
    """Make `a` and `b` the same axis.

    Raises:
        Misaligned: if they have no common refinement; parts may be unified by then, so the caller must pin both.
    """
    a, b = resolve(a), resolve(b)
    if a is not b:
        _unify(a, b)


def factor(axis: Axis, outer: int) -> tuple[Axis, Axis]:
    """Split `axis` into ``(outer, rest)``.

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


def split_axis(axis: Axis, sizes: Sequence[int]) -> tuple[Axis, ...]:
    """Split `axis` into consecutive segments of `sizes`, which add up to its size.

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
        _bind(axis, direct_sum(segments))
        return segments
    return _split_product(axis, sizes) if isinstance(axis, Product) else _split_sum(axis, sizes)


def _bind(p: Prime, to: Axis) -> None:
    """Bind `p` to the axis `to`; its pins carry over to every prime of `to`."""
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
    """Split both at the boundaries of the one that is a sum, and unify segment by segment."""
    if not isinstance(a, Sum):
        a, b = b, a
    assert isinstance(a, Sum)
    for x, y in zip(a.parts, split_axis(b, [part.size for part in a.parts]), strict=True):
        _unify(x, y)


def _unify_factors(left: list[Axis], right: list[Axis]) -> None:
    """Unify two products from the outermost factor inward; a larger factor is split to match the smaller."""
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
    """Split a product between two factors, or inside the one that contains the boundary."""
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
    """Split every segment of a sum, and unify the inner parts."""
    if any(part.size % rest for part in axis.parts):
        raise Misaligned(f"{axis} has segments that are no multiples of {rest}")
    pairs = [factor(part, part.size // rest) for part in axis.parts]
    for _, inner in pairs[1:]:
        _unify(pairs[0][1], inner)
    return direct_sum([resolve(outer) for outer, _ in pairs]), resolve(pairs[0][1])


def _split_product(axis: Product, sizes: Sequence[int]) -> tuple[Axis, ...]:
    """Split the outermost factor; boundaries must fall between its indices."""
    if not axis.parts:
        return tuple(prime(size) for size in sizes)
    first, rest = axis.parts[0], product(axis.parts[1:]) if len(axis.parts) > 1 else UNIT
    if any(size % rest.size for size in sizes):
        raise Misaligned(f"{axis} cannot be split into {list(sizes)}")
    outers = split_axis(first, [size // rest.size for size in sizes])
    return tuple(product([resolve(outer), resolve(rest)]) for outer in outers)


def _split_sum(axis: Sum, sizes: Sequence[int]) -> tuple[Axis, ...]:
    """Split the segments that contain a boundary, then regroup the pieces."""
    ends = list(accumulate(sizes))
    pieces: list[Axis] = []
    start = 0
    for part in axis.parts:
        stop = start + part.size
        inside = dict.fromkeys(ends[bisect_right(ends, start) : bisect_left(ends, stop)])
        pieces += split_axis(part, [high - low for low, high in pairwise([start, *inside, stop])])
        start = stop
    return tuple(_gather(pieces, sizes))


def _gather(pieces: list[Axis], sizes: Sequence[int]) -> Iterator[Axis]:
    """Join consecutive pieces into segments of `sizes`."""
    queue = iter(pieces)
    for size in sizes:
        parts: list[Axis] = []
        missing = size
        while missing > 0:
            parts.append(resolve(next(queue)))
            missing -= parts[-1].size
        yield direct_sum(parts) if parts else Sum(())


def resolve_prime(p: Prime) -> Prime:
    """The prime to which `p` was unified.

    Raises:
        Misaligned: if it has become a composite.
    """
    axis = resolve(p)
    if not isinstance(axis, Prime):
        raise Misaligned(f"{p} has become {axis}")
    return axis
