"""Ranges of inputs, inferred from the operators that read them: rows of a table, classes, marks and thresholds."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor, fx

from graphprune.ir.program import Program

aten = torch.ops.aten

#: Operators whose values are values of their tensor arguments.
_MOVES = {
    "_to_copy", "to", "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "expand", "clone", "slice", "select",
    "permute", "transpose", "t", "alias", "repeat", "flip", "roll", "cat", "stack", "masked_fill", "where", "detach",
    "detach_", "lift_fresh_copy", "split", "split_with_sizes", "unbind", "constant_pad_nd", "contiguous", "getitem",
    "flatten", "unflatten", "narrow", "chunk", "tril", "triu", "index_put", "slice_scatter", "copy", "type_as",
}  # fmt: skip
#: By operator the argument with a table, that with the indices into it, and that with the dimension or its number.
_LOOKUPS: dict[str, tuple[int, int, int | str]] = {
    "embedding": (0, 1, "0"), "embedding_bag": (0, 1, "0"), "_embedding_bag": (0, 1, "0"), "index_select": (0, 2, 1),
    "gather": (0, 2, 1), "scatter": (0, 2, 1), "scatter_add": (0, 2, 1), "scatter_reduce": (0, 2, 1),
    "index_add": (0, 2, 1), "index_copy": (0, 2, 1), "index_fill": (0, 2, 1), "index_reduce": (0, 2, 1),
    "nll_loss_forward": (0, 1, "1"), "nll_loss2d_forward": (0, 1, "1"), "nll_loss_nd": (0, 1, "1"),
    "cross_entropy_loss": (0, 1, "1"), "take_along_dim": (0, 1, 2),
}  # fmt: skip
_ORDERS = {"gt", "ge", "lt", "le", "greater", "greater_equal", "less", "less_equal"}
MARKS = 16  # constants of a tensor that an input is compared with


@dataclass
class IndexRange:
    """Use of an input: sizes of the tables that it indexes, each with what is added to it, its marks and thresholds.

    Marks are constants that the input may equal, such as the id of a placeholder for an image; thresholds are those
    that it may exceed.
    """

    tables: list[tuple[Any, int]] = field(default_factory=list)
    marks: set[int] = field(default_factory=set)
    thresholds: set[float] = field(default_factory=set)

    @property
    def decisive(self) -> list[float]:
        """Numbers for which comparisons have each of their answers."""
        steps = {threshold: max(1.0, abs(threshold)) for threshold in self.thresholds}
        return sorted({*map(float, self.marks), *(t + s for t, step in steps.items() for s in (-step, 0, step))})


def index_range(program: Program, placeholder: fx.Node) -> IndexRange:
    """Range that the operators allow which read an input, directly or moved."""
    use, seen = IndexRange(), {placeholder}
    stack = [(placeholder, 0)]
    while stack:
        node, offset = stack.pop()
        for user in node.users:
            name = _name(user)
            use.tables += [(size, offset) for size in _looked_up(user, name, node)]
            if name in ("eq", "ne", "isin"):
                use.marks |= {mark - offset for mark in _constants(program, user, node) if type(mark) is int}
            if name in _ORDERS:
                use.thresholds |= {number - offset for number in _constants(program, user, node)}
            shift = _shift(user, name, node)
            if user not in seen and (name in _MOVES or shift is not None):
                seen.add(user)
                stack.append((user, offset + (shift or 0)))
    return use


def _name(node: fx.Node) -> str:
    target: Any = node.target
    packet = getattr(target, "overloadpacket", target)
    return str(getattr(packet, "__name__", "")) if node.op == "call_function" else ""


def _looked_up(user: fx.Node, name: str, node: fx.Node) -> Iterator[Any]:
    """Sizes of the dimensions that the values of `node` index in this operator."""
    if name in _LOOKUPS:
        table, index, where = _LOOKUPS[name]
        if len(user.args) <= index or user.args[index] is not node:
            return
        dim: Any = int(where) if isinstance(where, str) else user.args[where] if len(user.args) > where else 0
        yield from _size(user.args[table], dim)
    if name in ("index", "index_put", "_unsafe_index", "_index_put_impl") and isinstance(user.args[1], list | tuple):
        for dim, index in enumerate(user.args[1]):
            if index is node and node.meta["val"].dtype != torch.bool:
                yield from _size(user.args[0], dim)


def _size(table: Any, dim: int) -> Iterator[Any]:
    value = table.meta.get("val") if isinstance(table, fx.Node) else None
    if isinstance(value, Tensor) and -value.dim() <= dim < value.dim():
        yield value.shape[dim]


def _constants(program: Program, user: fx.Node, node: fx.Node) -> list[Any]:
    """Finite numbers that `node` is compared with."""
    others = [arg for arg in user.args[:2] if arg is not node]
    numbers = list(filter(_is_number, others))
    for other in others:
        if isinstance(other, fx.Node) and other.op == "get_attr" and isinstance(other.meta.get("val"), Tensor):
            if other.meta["val"].numel() <= MARKS:
                numbers += filter(_is_number, program.weights[program.name(str(other.target))].flatten().tolist())
        elif isinstance(other, fx.Node) and _name(other) in ("full", "scalar_tensor"):
            numbers += filter(_is_number, other.args)
    return numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _shift(user: fx.Node, name: str, node: fx.Node) -> int | None:
    """Constant that an operator adds to the values of `node`."""
    if name not in ("add", "sub") or len(user.args) < 2 or user.args[0] is not node or user.kwargs:
        return None
    other = user.args[1]
    return (other if name == "add" else -other) if type(other) is int else None
