"""The laws of the axis algebra, on structures that random operations build."""

from dataclasses import dataclass, field
from itertools import product as tuples

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.axes import algebra
from graphprune.axes.algebra import (
    UNIT,
    Axis,
    Misaligned,
    Prime,
    Product,
    Sum,
    factor,
    pin,
    prime,
    primes,
    resolve,
    split_axis,
    unify,
)
from graphprune.axes.index_sets import Retained, RetainedByPrime, locate, retained_indices, width

SIZES = st.sampled_from([1, 2, 3, 4, 6, 8, 12])
STEP = st.tuples(
    st.sampled_from(["prime", "product", "sum", "unify", "unify", "unify", "factor", "cut", "pin"]),
    st.integers(0, 30), st.integers(0, 30), SIZES,
)  # fmt: skip
STEPS = st.lists(STEP, max_size=12)


@dataclass
class World:
    """Axes made by a sequence of operations, and what each operation promised."""

    pool: list[Axis] = field(default_factory=list)
    same: list[tuple[Axis, Axis]] = field(default_factory=list)
    factored: list[tuple[Axis, Axis, Axis]] = field(default_factory=list)
    segmented: list[tuple[Axis, tuple[Axis, ...]]] = field(default_factory=list)
    pinned: list[Axis] = field(default_factory=list)

    @classmethod
    def of(cls, sizes: list[int], steps: list[tuple[str, int, int, int]]) -> "World":
        """Run the operations; the axes that they name are counted around."""
        world = cls([prime(size) for size in sizes])
        for name, i, j, n in steps:
            world.step(name, world.pool[i % len(world.pool)], j, n)
        return world

    def step(self, name: str, a: Axis, j: int, n: int) -> None:
        """Run one operation."""
        alike = [axis for axis in self.pool if axis.size == a.size]
        b = alike[j % len(alike)] if name == "unify" else self.pool[j % len(self.pool)]
        if name == "prime":
            self.pool.append(prime(n))
        elif name == "product" and a.size * b.size <= 200:
            self.pool.append(Product((a, b)))
        elif name == "sum" and a.size + b.size <= 100:
            self.pool.append(Sum((a, b)))
        elif name == "pin":
            pin(a, "by hand")
            self.pinned.append(a)
        elif name == "unify":
            self.unify(a, b)
        else:
            self.divide(name, a, n)

    def unify(self, a: Axis, b: Axis) -> None:
        """Unify, and note what came of it."""
        try:
            algebra._unify(a, b)
            self.same.append((a, b))
        except Misaligned:
            unify(a, b, "they do not align")
            self.pinned += [a, b]

    def divide(self, name: str, a: Axis, n: int) -> None:
        """Factor or cut; where that fails, pin, as the callers of both do."""
        try:
            if name == "factor":
                self.factored.append((a, *factor(a, n)))
                self.pool += self.factored[-1][1:]
            elif name == "cut" and n <= a.size:
                self.segmented.append((a, split_axis(a, [n, a.size - n])))
                self.pool += [piece for piece in self.segmented[-1][1] if piece.size]
        except Misaligned:
            pin(a, "it does not divide")
            self.pinned.append(a)


def free(world: World) -> list[Prime]:
    return [p for p in dict.fromkeys(p for axis in world.pool for p in primes(axis)) if not p.pins]


def effect(world: World) -> list[list[tuple[tuple[int, int], ...]]]:
    """For every index of every axis, which indices of which free primes decide whether it stays."""
    names: dict[Prime, int] = {}

    def of(axis: Axis) -> list[tuple[tuple[int, int], ...]]:
        axis = resolve(axis)
        if isinstance(axis, Prime):
            own = [] if axis.pins else [(names.setdefault(axis, len(names)), i) for i in range(axis.size)]
            return [(one,) for one in own] or [()] * axis.size
        if isinstance(axis, Sum):
            return [label for part in axis.parts for label in of(part)]
        return [tuple(sorted({one for label in labels for one in label})) for labels in tuples(*map(of, axis.parts))]

    return [of(axis) for axis in world.pool]


def mask(axis: Axis, keep: RetainedByPrime) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Which indices stay, by products and concatenations of arrays."""
    axis = resolve(axis)
    if isinstance(axis, Prime):
        return np.isin(np.arange(axis.size), keep[axis].rows[0] if axis in keep else range(axis.size))
    if isinstance(axis, Sum):
        return np.concatenate([mask(part, keep) for part in axis.parts] or [np.ones(0, bool)])
    found = np.ones(1, bool)
    for part in axis.parts:
        found = np.logical_and.outer(found, mask(part, keep)).reshape(-1)
    return found


def draw(data: st.DataObject, size: int, count: int | None = None) -> tuple[int, ...]:
    """Some indices, at least one."""
    least, most = (1, size) if count is None else (count, count)
    return tuple(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=least, max_size=most))))


@given(st.lists(SIZES, min_size=2, max_size=4), STEPS, st.integers(0, 30), st.integers(0, 30))
def test_unify_is_commutative_and_idempotent(
    sizes: list[int], steps: list[tuple[str, int, int, int]], i: int, j: int
) -> None:
    there, back = World.of(sizes, steps), World.of(sizes, steps)
    i = i % len(there.pool)
    alike = [k for k, axis in enumerate(there.pool) if axis.size == there.pool[i].size]
    j = alike[j % len(alike)]
    unify(there.pool[i], there.pool[j])
    unify(back.pool[j], back.pool[i])
    once = effect(there)
    assert once == effect(back)
    unify(there.pool[i], there.pool[j])
    unify(there.pool[i], there.pool[i])
    assert effect(there) == once


@given(st.lists(SIZES, min_size=2, max_size=4), STEPS, st.data())
def test_kept_indices_are_consistent_after_any_operations(
    sizes: list[int], steps: list[tuple[str, int, int, int]], data: st.DataObject
) -> None:
    world = World.of(sizes, steps)
    keep = {p: Retained((draw(data, p.size),)) for p in free(world) if p.size and data.draw(st.booleans())}
    widths = {p: rows.width for p, rows in keep.items()}
    for axis in world.pool:
        found = retained_indices(axis, keep)
        assert found == np.flatnonzero(mask(axis, keep)).tolist()
        assert len(found) == width(axis, widths)
    for a, b in world.same:
        assert retained_indices(a, keep) == retained_indices(b, keep)
    for axis, outer, rest in world.factored:
        assert retained_indices(axis, keep) == [
            i * rest.size + j for i in retained_indices(outer, keep) for j in retained_indices(rest, keep)
        ]
    for axis, pieces in world.segmented:
        first, second = (retained_indices(piece, keep) for piece in pieces)
        assert retained_indices(axis, keep) == [*first, *(pieces[0].size + i for i in second)]
    for axis in world.pinned:
        assert retained_indices(axis, keep) == list(range(axis.size))


@given(st.lists(SIZES, min_size=2, max_size=4), STEPS, STEPS)
def test_pins_survive_whatever_follows(
    sizes: list[int], first: list[tuple[str, int, int, int]], then: list[tuple[str, int, int, int]]
) -> None:
    world = World.of(sizes, first)
    for axis in world.pool:
        pin(axis, "for good")
    before = list(world.pool)
    for name, i, j, n in then:
        world.step(name, before[i % len(before)], j, n)
    assert all(p.pins for axis in before for p in primes(axis))


@given(st.lists(SIZES, min_size=1, max_size=4))
def test_factor_and_cut_undo_product_and_sum(sizes: list[int]) -> None:
    parts = [prime(size) for size in sizes]
    outer, rest = factor(Product(tuple(parts)), sizes[0])
    assert list(primes(outer)) == list(primes(parts[0]))
    assert list(primes(rest)) == [p for part in parts[1:] for p in primes(part)]
    pieces = split_axis(Sum(tuple(parts)), sizes)
    assert [piece.size for piece in pieces] == sizes
    assert [list(primes(piece)) for piece in pieces] == [list(primes(part)) for part in parts]


@given(st.permutations(["owner", "inner", "a", "b"]), st.integers(1, 4), st.data())
def test_linked_rows_agree_with_index_arithmetic(order: list[str], count: int, data: st.DataObject) -> None:
    sizes = {"owner": 3, "inner": 4, "a": 2, "b": 2}
    if order.index("inner") < order.index("owner"):
        order.reverse()
    named = {name: Prime(size) for name, size in sizes.items()}
    axis = Sum((Product(tuple(named[name] for name in order)), Prime(2)))
    heads = draw(data, 3)
    rows = tuple(draw(data, 4, count) for _ in range(3))
    keep = {named["owner"]: Retained((heads,)), named["inner"]: Retained(rows, named["owner"])}
    places = [dict(zip(order, index, strict=True)) for index in np.ndindex(*(sizes[name] for name in order))]
    expected = [i for i, at in enumerate(places) if at["owner"] in heads and at["inner"] in rows[at["owner"]]]
    assert retained_indices(axis, keep) == [*expected, 48, 49]
    assert (
        width(axis, {p: found.width for p, found in keep.items()} | {named["owner"]: len(heads)}) == len(expected) + 2
    )
    assert locate(axis, named["inner"], named["owner"]) == [(at["owner"], at["inner"]) for at in places] + [(0, -1)] * 2


def test_what_cannot_be_aligned_is_pinned_on_both_sides() -> None:
    a, b = Product((Prime(2), Prime(3))), Product((Prime(3), Prime(2)))
    unify(a, b, "a view")
    assert all(
        p.pins and p.pins[0].startswith("a view (a factor of 3 meets one of 2") for x in (a, b) for p in primes(x)
    )
    c, d = Prime(4), Prime(5)
    unify(c, d, "an addition")
    assert c.pins == d.pins == ["an addition (size 4 meets size 5)"]


@pytest.mark.parametrize("outer", [0, 5, 7])
def test_factor_refuses_what_does_not_divide(outer: int) -> None:
    with pytest.raises(Misaligned, match=f"12 does not split into {outer} equal parts"):
        factor(Prime(12), outer)


def test_rotating_halves_finds_the_rotary_pairs() -> None:
    head, frequencies = Prime(8), Prime(4)
    first, second = split_axis(head, [4, 4])
    unify(algebra.direct_sum([second, first]), head)
    unify(Sum((frequencies, frequencies)), head)
    (pair,) = set(primes(head))
    assert list(primes(frequencies)) == [pair]
    assert retained_indices(head, {pair: Retained(((0, 3),))}) == [0, 3, 4, 7]


def test_grouped_queries_leave_four_axes() -> None:
    q, k, v, o = Prime(4 * 6), Prime(2 * 6), Prime(2 * 6), Prime(4 * 6)
    heads, query = factor(q, 4)
    (groups, key), (value_groups, value) = factor(k, 2), factor(v, 2)
    unify(groups, value_groups)
    unify(query, key)
    outer, inner = factor(heads, 2)
    unify(outer, groups)
    unify(o, Product((heads, value)))
    sizes = [[p.size for p in primes(axis)] for axis in (q, k, v, o)]
    assert sizes == [[2, 2, 6], [2, 6], [2, 6], [2, 2, 6]]
    assert len({p for axis in (q, k, v, o) for p in primes(axis)}) == 4
    assert resolve(inner) in list(primes(o))
    assert UNIT.size == 1 and not list(primes(UNIT))
