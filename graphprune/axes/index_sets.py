"""Retained indices of a dimension, from the retained indices of its primes."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import TypeVar

from graphprune.axes.algebra import Axis, Prime, Product, Sum, primes, product, resolve

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Retained:
    """Retained indices of a prime: one row, or a row for each index of the outer axis `owner`."""

    rows: tuple[tuple[int, ...], ...]
    owner: Prime | None = None

    @property
    def width(self) -> int:
        return len(self.rows[0])


RetainedByPrime = Mapping[Prime, Retained]


def retained_indices(axis: Axis, keep: RetainedByPrime, around: Mapping[Prime, int] | None = None) -> list[int]:
    """Retained indices of `axis` when its primes retain those in `keep`; primes that are not in it retain all."""
    axis = resolve(axis)
    if not any(p in keep for p in primes(axis)):
        return list(range(axis.size))
    if isinstance(axis, Prime):
        return _retained_of_prime(keep[axis], around or {})
    if isinstance(axis, Sum):
        starts = accumulate((part.size for part in axis.parts), initial=0)
        segments = zip(starts, axis.parts, strict=False)
        return [start + i for start, part in segments for i in retained_indices(part, keep, around)]
    return _retained_of_product(axis, keep, around or {})


def _retained_of_prime(own: Retained, around: Mapping[Prime, int]) -> list[int]:
    if own.owner is None:
        return list(own.rows[0])
    return list(own.rows[around[own.owner]])


def _retained_of_product(axis: Product, keep: RetainedByPrime, around: Mapping[Prime, int]) -> list[int]:
    first, rest = axis.parts[0], product(axis.parts[1:])
    outers = retained_indices(first, keep, around)
    if isinstance(first, Prime) and any(p in keep and keep[p].owner is first for p in primes(rest)):
        return [i * rest.size + j for i in outers for j in retained_indices(rest, keep, {**around, first: i})]
    inners = retained_indices(rest, keep, around)
    return [i * rest.size + j for i in outers for j in inners]


def width(axis: Axis, widths: Mapping[Prime, N]) -> N | int:
    """Size of `axis` when its primes have `widths` (by default their own sizes); fractions are allowed."""
    return resolved_width(resolve(axis), widths)


def resolved_width(axis: Axis, widths: Mapping[Prime, N]) -> N | int:
    """Size of an axis in its final form when its primes have `widths`."""
    if isinstance(axis, Prime):
        return widths.get(axis, axis.size)
    sizes = [resolved_width(part, widths) for part in axis.parts]
    return prod(sizes) if isinstance(axis, Product) else sum(sizes)


def segment(axis: Axis, inside: Prime, owner: Prime | None = None) -> tuple[int, Axis]:
    """The start and the axis of the smallest segment of a dimension outside of which neither prime stands."""
    axis, start = resolve(axis), 0
    while isinstance(axis, Sum) and owner not in axis.places:
        first, parts = axis.places.get(inside, (0, ()))
        if len(parts) != 1:
            break
        axis, start = parts[0], start + first
    return start, axis


def locate(axis: Axis, p: Prime, owner: Prime | None = None) -> list[tuple[int, int]]:
    """Index of the outer axis `owner` (0 without one) and of `p`, for every index of `axis`.

    The latter is -1 in segments that do not contain `p`.
    """
    return _locate(resolve(axis), p, owner)


def _locate(axis: Axis, p: Prime, owner: Prime | None) -> list[tuple[int, int]]:
    if axis is p:
        return [(0, i) for i in range(axis.size)]
    if axis is owner:
        return [(i, -1) for i in range(axis.size)]
    if isinstance(axis, Prime):
        return [(0, -1)] * axis.size
    if isinstance(axis, Sum):
        return [place for part in axis.parts for place in _locate(part, p, owner)]
    places = [(0, -1)]
    for part in axis.parts:
        inner = _locate(part, p, owner)
        places = [(r + row, max(c, column)) for r, c in places for row, column in inner]
    return places
