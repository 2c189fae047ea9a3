"""Which numbers of a module make those that its forward computes with, seen by running it."""

import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from graphprune.execution.module_state import evaluation_mode, preserved_state
from graphprune.support.undo import Undo
from graphprune.writeback.attribute_slots import Slot

Values = Mapping[Slot, float]
#: A line of a forward: the module by its identity, file and line.
Place = tuple[int, str, int]


@dataclass(frozen=True)
class Made:
    """How a number was computed from slots; `known` is False if the shape of a tensor went into it, too."""

    value: Callable[[Values], float]
    slots: frozenset[Slot]
    known: bool = True


@dataclass(frozen=True)
class Use:
    """A number that was handed to torch at a place of the model's code; `made` is None where no slot made it."""

    place: Place
    value: float
    made: Made | None


class Sized(int):
    """An integer that remembers how it was made."""

    made: Made

    def __new__(cls, value: int, made: Made) -> "Sized":
        self = super().__new__(cls, value)
        self.made = made
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return int, (int(self),)  # copies are plain integers


class Measured(float):
    """A number such as an epsilon that remembers the slot where it stood; what is computed of it does not."""

    made: Made

    def __new__(cls, value: float, made: Made) -> "Measured":
        self = super().__new__(cls, value)
        self.made = made
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return float, (float(self),)


def _follow(name: str, compute: Callable[[Any, Any], Any]) -> None:
    """Let an arithmetic operation of `Sized` remember its operands."""

    def forth(self: Sized, other: Any) -> Any:
        return _joined(getattr(int, f"__{name}__")(self, other), compute, self, other)

    def back(self: Sized, other: Any) -> Any:
        return _joined(getattr(int, f"__r{name}__")(self, other), compute, other, self)

    setattr(Sized, f"__{name}__", forth)
    setattr(Sized, f"__r{name}__", back)


for _name in ("add", "sub", "mul", "floordiv", "mod", "pow"):
    _follow(_name, getattr(operator, _name))


def _joined(result: Any, compute: Callable[[Any, Any], Any], a: int, b: int) -> Any:
    """The result, remembering both operands, if it is an integer at all."""
    if type(result) is not int:
        return result
    left, right = _made(a), _made(b)
    value = lambda known: compute(left.value(known), right.value(known))  # noqa: E731
    return Sized(result, Made(value, left.slots | right.slots, left.known and right.known))


def _made(value: int) -> Made:
    return value.made if isinstance(value, Sized) else Made(lambda _: int(value), frozenset())


@torch.no_grad()
def watch(module: nn.Module, found: list[Slot], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Use]:
    """Run a module and see which numbers reach torch, in order, and which slots they were made of."""
    undo = Undo()
    watcher = _Watcher({id(part) for part in module.modules()})
    with evaluation_mode(module), preserved_state(module):
        try:
            for slot in found:
                made = Made(operator.itemgetter(slot), frozenset([slot]))
                slot.put(undo, Sized(slot.value, made) if type(slot.value) is int else Measured(slot.value, made))
            with watcher:
                module(*args, **kwargs)
        finally:
            undo.rollback()
    return watcher.uses


class _Watcher(TorchFunctionMode):
    """Notes the numbers in every call of torch; sizes of tensors are marked as such."""

    def __init__(self, parts: set[int]) -> None:
        super().__init__()
        self.parts, self.uses = parts, list[Use]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.Tensor.shape.__get__, torch.Tensor.size):  # type: ignore[attr-defined]
            return _marked(result)
        numbers = list(_numbers((args, kwargs)))
        if numbers and (place := self._place()):
            self.uses += [Use(place, n, n.made if isinstance(n, Sized | Measured) else None) for n in numbers]
        return result

    def _place(self) -> Place | None:
        """The innermost line of a forward."""
        frame, line = sys._getframe(2), None
        while frame is not None:
            if frame.f_code.co_name == "forward":
                line = line or (frame.f_code.co_filename, frame.f_lineno)
                if id(frame.f_locals.get("self")) in self.parts:
                    return id(frame.f_locals["self"]), *line
            frame = frame.f_back  # type: ignore[assignment]
        return None


def _marked(result: Any) -> Any:
    """Sizes that follow a cut by themselves."""
    if isinstance(result, torch.Size):
        return torch.Size(map(_marked, result))
    return Sized(result, Made(lambda _: result, frozenset(), known=False)) if type(result) is int else result


def _numbers(value: Any) -> Iterator[float]:
    """The numbers in the arguments of a call, in order."""
    if isinstance(value, int | float):
        if not isinstance(value, bool):
            yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, slice):
        yield from _numbers((value.start, value.stop, value.step))
    elif isinstance(value, dict):
        yield from _numbers(list(value.values()))
