"""Where a module keeps numbers: its attributes, those of its configuration, and lists of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.support.undo import Undo

DEPTH = 3  # how far objects inside objects are looked into
LONGEST = 64  # longer lists hold data, not sizes
_INTERNAL = frozenset(vars(nn.Module()))


@dataclass(frozen=True, eq=False)
class Slot:
    """A number that a module or an object in it holds: an entry of its `table`, or one item of that entry."""

    owner: object
    table: dict[Any, Any] = field(repr=False)
    key: Any
    index: int | None
    value: float

    @property
    def kind(self) -> tuple[type, Any, int | None, float]:
        """Equal for the slots of different layers that do the same job."""
        return type(self.owner), self.key, self.index, self.value

    def __str__(self) -> str:
        item = "" if self.index is None else f"[{self.index}]"
        return f"{type(self.owner).__name__}.{self.key}{item}"

    def put(self, undo: Undo, value: float) -> None:
        """Let it hold another value."""
        old = self.table[self.key]
        if self.index is None:
            undo.set_item(self.table, self.key, value)
        else:
            undo.set_item(self.table, self.key, type(old)([*old[: self.index], value, *old[self.index + 1 :]]))


def slots(module: nn.Module) -> list[Slot]:
    """Every number in a module that a cut may change, in its parts, and in the plain objects that they hold."""
    seen: set[int] = set()
    return [slot for part in module.modules() for slot in _within(part, vars(part), seen, DEPTH)]


def _within(owner: object, table: dict[Any, Any], seen: set[int], depth: int) -> Iterator[Slot]:
    if id(table) in seen or not depth:
        return
    seen.add(id(table))
    for key, value in table.items():
        if isinstance(owner, nn.Module) and key in _INTERNAL:
            continue
        if _may_change(value):
            yield Slot(owner, table, key, None, value)
        elif type(value) in (tuple, list, torch.Size) and len(value) <= LONGEST:
            yield from (Slot(owner, table, key, i, item) for i, item in enumerate(value) if _may_change(item))
        elif type(value) is dict:
            yield from _within(owner, value, seen, depth - 1)
        elif _is_plain(value):
            yield from _within(value, vars(value), seen, depth - 1)


def _may_change(value: object) -> bool:
    """Can this be a size that shrinks, or the epsilon of a norm?"""
    return (type(value) is int and value > 1) or type(value) is float


def _is_plain(value: object) -> bool:
    """Is this an object that holds values, such as a configuration?"""
    return hasattr(value, "__dict__") and not isinstance(value, nn.Module | Tensor | type) and not callable(value)
