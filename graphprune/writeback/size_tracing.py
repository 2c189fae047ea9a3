"""Tracing of one run of a module: the numbers its forward hands to torch, and the slots they are computed from."""

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
#: A line of a forward: the identity of the module, the file and the line number.
ForwardLine = tuple[int, str, int]


@dataclass(frozen=True)
class Provenance:
    """Computation of a number from slots; `known` is False if the shape of a tensor is an operand, too."""

    value: Callable[[Values], float]
    slots: frozenset[Slot]
    known: bool = True


@dataclass(frozen=True)
class Use:
    """A number passed to torch at a line of the model's code; `provenance` is None if no slot is involved."""

    line: ForwardLine
    value: float
    provenance: Provenance | None


class TracedInt(int):
    """An integer that records how it was computed."""

    provenance: Provenance

    def __new__(cls, value: int, provenance: Provenance) -> "TracedInt":
        self = super().__new__(cls, value)
        self.provenance = provenance
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return int, (int(self),)  # copies are plain integers


class TracedFloat(float):
    """A float, such as an epsilon, that records the slot it was read from; results of arithmetic do not."""

    provenance: Provenance

    def __new__(cls, value: float, provenance: Provenance) -> "TracedFloat":
        self = super().__new__(cls, value)
        self.provenance = provenance
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return float, (float(self),)


def _trace_operator(name: str, compute: Callable[[Any, Any], Any]) -> None:
    """Let an arithmetic operation of `TracedInt` record its operands."""

    def direct(self: TracedInt, other: Any) -> Any:
        return _combined(getattr(int, f"__{name}__")(self, other), compute, self, other)

    def reflected(self: TracedInt, other: Any) -> Any:
        return _combined(getattr(int, f"__r{name}__")(self, other), compute, other, self)

    setattr(TracedInt, f"__{name}__", direct)
    setattr(TracedInt, f"__r{name}__", reflected)


for _name in ("add", "sub", "mul", "floordiv", "mod", "pow"):
    _trace_operator(_name, getattr(operator, _name))


def _combined(result: Any, compute: Callable[[Any, Any], Any], a: int, b: int) -> Any:
    """The result with both operands recorded, if it is an integer."""
    if type(result) is not int:
        return result
    left, right = _provenance(a), _provenance(b)
    value = lambda known: compute(left.value(known), right.value(known))  # noqa: E731
    return TracedInt(result, Provenance(value, left.slots | right.slots, left.known and right.known))


def _provenance(value: int) -> Provenance:
    return value.provenance if isinstance(value, TracedInt) else Provenance(lambda _: int(value), frozenset())


@torch.no_grad()
def trace_numbers(module: nn.Module, slots: list[Slot], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Use]:
    """Numbers that a run of a module passes to torch, in order, with the slots they were computed from."""
    undo = Undo()
    recorder = _NumberRecorder({id(part) for part in module.modules()})
    with evaluation_mode(module), preserved_state(module):
        try:
            for slot in slots:
                provenance = Provenance(operator.itemgetter(slot), frozenset([slot]))
                kind: Any = TracedInt if type(slot.value) is int else TracedFloat
                slot.put(undo, kind(slot.value, provenance))
            with recorder:
                module(*args, **kwargs)
        finally:
            undo.rollback()
    return recorder.uses


class _NumberRecorder(TorchFunctionMode):
    """Records the numbers in the arguments of every torch call, and marks the sizes of tensors as unknown."""

    def __init__(self, submodules: set[int]) -> None:
        super().__init__()
        self.submodules, self.uses = submodules, list[Use]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.Tensor.shape.__get__, torch.Tensor.size):  # type: ignore[attr-defined]
            return _mark_shape(result)
        numbers = list(_numbers((args, kwargs)))
        if numbers and (line := self._innermost_forward()):
            self.uses += [Use(line, number, getattr(number, "provenance", None)) for number in numbers]
        return result

    def _innermost_forward(self) -> ForwardLine | None:
        """The line that is executed in the innermost forward; None outside of the module's forwards."""
        frame, line = sys._getframe(2), None
        while frame is not None:
            if frame.f_code.co_name == "forward":
                line = line or (frame.f_code.co_filename, frame.f_lineno)
                if id(frame.f_locals.get("self")) in self.submodules:
                    return id(frame.f_locals["self"]), *line
            frame = frame.f_back  # type: ignore[assignment]
        return None


def _mark_shape(result: Any) -> Any:
    """Mark the sizes of a tensor, which follow a cut without any slot."""
    if isinstance(result, torch.Size):
        return torch.Size(map(_mark_shape, result))
    return TracedInt(result, Provenance(lambda _: result, frozenset(), known=False)) if type(result) is int else result


def _numbers(value: Any) -> Iterator[float]:
    """Numbers in the arguments of a call, in order."""
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
