"""Shared by operators that read or write a slice: its bounds, its axis, and its bounds after a cut."""

from typing import Any

from torch import fx

from graphprune.axes.algebra import Axis, Misaligned, factor, split_axis
from graphprune.axes.rule import Cut, Flow
from graphprune.axes.rule_helpers import argument

END = 2**63 - 1
Bounds = tuple[Any, Any, int]


def slice_bounds(node: fx.Node, first: int, size: int) -> Bounds:
    """Start, end and step of a slice, counted from the front, from the arguments at position `first` onward."""
    start, end = argument(node, first, "start", 0), argument(node, first + 1, "end", END)
    start, end = 0 if start is None else start, END if end is None else end
    if isinstance(start, int):
        start = max(start + size, 0) if start < 0 else min(start, size)
    end = end + size if isinstance(end, int) and end < 0 else end
    return start, end, argument(node, first + 2, "step", 1)


def sliced_axis(flow: Flow, axis: Axis, bound: Bounds, new: Axis) -> Axis:
    """The axis of a slice; the fresh axis `new`, pinned, where the bounds depend on data or fit no structure."""
    start, end, step = bound
    if start == 0 and new.size == axis.size and isinstance(end, int):
        return axis
    try:
        if not isinstance(start, int) or not isinstance(end, int):
            raise Misaligned("bounds that depend on the input")
        if step != 1:
            return _strided(flow, axis, start, step, new.size)
        return split_axis(axis, [start, new.size, axis.size - start - new.size])[1]
    except Misaligned:
        for each in (axis, new):
            flow.pin(each, "a slice takes a part of it that fits no structure")
        return new


def bounds_after_cut(cut: Cut, axis: Axis, bound: Bounds) -> Bounds:
    """The bounds of the slice after the axis was cut."""
    start, end, step = bound
    if not cut.changed(axis) or not isinstance(start, int) or not isinstance(end, int):
        return bound
    low = cut.count_retained(axis, 0, start) if step == 1 else start
    return low, END if end >= axis.size else cut.count_retained(axis, 0, end), step


def _strided(flow: Flow, axis: Axis, start: int, step: int, size: int) -> Axis:
    """The outer factor of an axis of which a slice takes every `step`-th index, `size` in all."""
    if axis.size != size * step or start >= step:
        raise Misaligned(f"a stride over {axis}")
    outer, inner = factor(axis, size)
    flow.pin(inner, f"every {step}th index is taken from it")
    return outer
