"""Slots of a module that hold numbers: its attributes, those of its configuration, and lists in either."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.support.undo import Undo

DEPTH = 3  # levels of objects inside objects to search
LONGEST = 64  # longer lists hold data, not sizes
INTERNAL = frozenset(vars(nn.Module()))


@dataclass(frozen=True, eq=False)
class Slot:
    """A number held by a module or by an object in it: an entry of its `table`, or item `index` of that entry.

    With a `path`, the entry is in a dict inside the table. Such a dict may be that of a library, from which it makes
    other modules, so a copy takes its place before it changes.
    """

    owner: object
    table: dict[Any, Any] = field(repr=False)
    key: Any
    index: int | None
    value: float
    path: tuple[Any, ...] = ()

    @property
    def kind(self) -> tuple[type, Any, int | None, float]:
        """Key that is equal for slots with the same purpose in different layers."""
        return type(self.owner), self.key, self.index, self.value

    def __str__(self) -> str:
        item = "" if self.index is None else f"[{self.index}]"
        return f"{type(self.owner).__name__}.{self.key}{item}"

    @property
    def current(self) -> float:
        """The number that the slot holds now."""
        held: Any = self._held
        number: float = held if self.index is None else held[self.index]
        return number

    @property
    def _held(self) -> Any:
        return reduce(getitem, (*self.path, self.key), self.table)

    def put(self, undo: Undo, value: float) -> None:
        """Set the slot to another value."""
        new: Any = value
        if self.index is not None:
            old = self._held
            new = type(old)([*old[: self.index], value, *old[self.index + 1 :]])
        first, *inner = *self.path, self.key
        undo.set_item(self.table, first, _replaced(self.table[first], inner, new))


def _replaced(held: Any, keys: Sequence[Any], value: Any) -> Any:
    """The value, or copies of nested dicts that hold it at these keys."""
    return {**held, keys[0]: _replaced(held[keys[0]], keys[1:], value)} if keys else value


def slots(module: nn.Module) -> list[Slot]:
    """Slots of all numbers that a cut may change, in the submodules of a module and in the plain objects they hold."""
    seen: set[int] = set()
    return [slot for part in module.modules() for slot in _within(part, vars(part), seen, DEPTH)]


def _within(owner: object, table: dict[Any, Any], seen: set[int], depth: int) -> Iterator[Slot]:
    if id(table) in seen or not depth:
        return
    seen.add(id(table))
    yield from _entries(owner, table, (), seen, depth)


def _entries(owner: object, table: dict[Any, Any], path: tuple[Any, ...], seen: set[int], depth: int) -> Iterator[Slot]:
    """Slots in the dict at a path inside the table of an object, and in what it holds."""
    for key, value in reduce(getitem, path, table).items():
        if isinstance(owner, nn.Module) and not path and key in INTERNAL:
            continue
        if _may_change(value):
            yield Slot(owner, table, key, None, value, path)
        elif type(value) in (tuple, list, torch.Size) and len(value) <= LONGEST:
            yield from (Slot(owner, table, key, i, item, path) for i, item in enumerate(value) if _may_change(item))
        elif type(value) is dict and depth > 1:
            yield from _entries(owner, table, (*path, key), seen, depth - 1)
        elif is_plain(value):
            yield from _within(value, vars(value), seen, depth - 1)


def _may_change(value: object) -> bool:
    """Whether this may be a size to reduce, or the epsilon of a norm."""
    return (type(value) is int and value > 1) or type(value) is float


def is_plain(value: object) -> bool:
    """Whether this is an object that holds values, such as a configuration."""
    return hasattr(value, "__dict__") and not isinstance(value, nn.Module | Tensor | type) and not callable(value)
