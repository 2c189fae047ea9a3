"""Numbers that record how they were computed, and the comparisons between them."""

import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from graphprune.writeback.attribute_slots import Slot

Values = Mapping[Slot, float]


@dataclass
class Comparisons:
    """Log of the equalities that a run tests, by the place in the code.

    A run that replays a `former` one is given the answers of that one: a size that equaled another must follow it.
    `broken` holds the operands of the equalities that no longer hold.
    """

    former: "Comparisons | None" = None
    answers: dict[Any, list[bool]] = field(default_factory=dict)
    broken: list[tuple["Provenance", "Provenance"]] = field(default_factory=list)
    slots: set[Slot] = field(default_factory=set)

    def decide(self, equal: bool, a: Any, b: Any) -> bool:
        """Answer whether two numbers are equal."""
        caller = sys._getframe(2)
        key = caller.f_code, caller.f_lasti
        answers = self.answers.setdefault(key, [])
        answers.append(equal)
        self.slots |= provenance(a).slots | provenance(b).slots
        before = self.former.answers.get(key, []) if self.former else []
        if equal or len(answers) > len(before) or not before[len(answers) - 1]:
            return equal
        self.broken.append((provenance(a), provenance(b)))
        return True


@dataclass(frozen=True)
class Provenance:
    """Computation of a number from slots; `known` is False if the shape of a tensor is an operand, too."""

    value: Callable[[Values], float]
    slots: frozenset[Slot]
    known: bool = True
    comparisons: Comparisons | None = None


class TracedInt(int):
    """An integer that records how it was computed."""

    provenance: Provenance

    def __new__(cls, value: int, provenance: Provenance) -> "TracedInt":
        self = super().__new__(cls, value)
        self.provenance = provenance
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return int, (int(self),)  # copies are plain integers

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        equal = int.__eq__(self, other)
        log = self.provenance.comparisons
        return log.decide(equal, self, other) if log and isinstance(equal, bool) else equal

    def __ne__(self, other: object) -> bool:
        equal = int.__eq__(self, other)
        log = self.provenance.comparisons
        if not isinstance(equal, bool):
            return equal
        return not (log.decide(equal, self, other) if log else equal)


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
    left, right = provenance(a), provenance(b)
    value = lambda known: compute(left.value(known), right.value(known))  # noqa: E731
    known = left.known and right.known
    log = left.comparisons or right.comparisons
    return TracedInt(result, Provenance(value, left.slots | right.slots, known, log))


def provenance(value: Any) -> Provenance:
    """The computation of a number; constants have no slots."""
    return value.provenance if isinstance(value, TracedInt) else Provenance(lambda _: value, frozenset())


def mark_shape(result: Any, log: Comparisons) -> Any:
    """Mark the sizes of a tensor, which follow a cut without any slot."""
    if isinstance(result, torch.Size):
        return torch.Size([mark_shape(size, log) for size in result])
    if type(result) is not int:
        return result
    return TracedInt(result, Provenance(lambda _: result, frozenset(), known=False, comparisons=log))
