"""Tensors that a module holds without registering them: attributes, and items of lists, tuples, dicts and objects."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.ir.program import Program
from graphprune.support.undo import Undo
from graphprune.writeback.attribute_slots import DEPTH, INTERNAL, is_plain


@dataclass(frozen=True)
class TensorPlace:
    """An entry of a dict or list, or an item of the tuple in another place."""

    holder: Any
    key: Any

    def read(self) -> Any:
        """Return what is there."""
        return (self.holder.read() if isinstance(self.holder, TensorPlace) else self.holder)[self.key]

    def write(self, undo: Undo, value: object) -> None:
        """Put something else there."""
        if isinstance(self.holder, TensorPlace):
            old = self.holder.read()
            items = [*old[: self.key], value, *old[self.key + 1 :]]
            self.holder.write(undo, old._make(items) if hasattr(old, "_make") else type(old)(items))
        elif isinstance(self.holder, list):
            undo.steps.append(partial(self.holder.__setitem__, self.key, self.holder[self.key]))
            self.holder[self.key] = value
        else:
            undo.set_item(self.holder, self.key, value)


#: Places of the unregistered tensors of a program, by their names there.
Places = dict[str, list[TensorPlace]]


def places(program: Program, module: nn.Module, registered: set[str]) -> Places:
    """Places of the tensors of a program that a module does not register; those with none are not listed.

    A tensor is known by its memory, which a capture shares. Modules that are not registered are not searched.
    """
    names = {_memory(program.weights[name]): name for name in program.shapes() if name not in registered}
    found: Places = {}
    if names:
        seen: set[int] = set()
        for part in module.modules():
            for place in _within(part, vars(part), seen, DEPTH):
                if (name := names.get(_memory(place.read()))) is not None:
                    found.setdefault(name, []).append(place)
    return found


def write(undo: Undo, holders: list[TensorPlace], data: Tensor) -> None:
    """Replace a tensor, wherever it is held, by a narrow one."""
    old = holders[0].read()
    new = data.to(old).requires_grad_(old.requires_grad)
    for place in holders:
        place.write(undo, new)


def _memory(tensor: Tensor) -> object:
    if tensor.layout is not torch.strided or not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _within(owner: object, table: dict[Any, Any], seen: set[int], depth: int) -> Iterator[TensorPlace]:
    """Places of tensors in the attributes of an object."""
    for key in table if depth else ():
        if not isinstance(owner, nn.Module) or key not in INTERNAL:
            yield from _at(TensorPlace(table, key), seen, depth)


def _at(place: TensorPlace, seen: set[int], depth: int) -> Iterator[TensorPlace]:
    value = place.read()
    if isinstance(value, Tensor):
        yield place
        return
    if id(value) in seen or not depth:
        return
    seen.add(id(value))
    if isinstance(value, list | tuple | dict):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _at(TensorPlace(place if isinstance(value, tuple) else value, key), seen, depth - 1)
    elif is_plain(value):
        yield from _within(value, vars(value), seen, depth - 1)
