"""Tracing of a run of a module: the numbers its forward hands to torch, and the slots they are computed from."""

import operator
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from graphprune.execution.module_state import evaluation_mode, preserved_state
from graphprune.support.undo import Undo
from graphprune.writeback.attribute_slots import Slot
from graphprune.writeback.call_sites import ArgumentPath, CallSite, ForwardLine, call_site, innermost_forward
from graphprune.writeback.sizes.traced_numbers import Comparisons, Provenance, TracedFloat, TracedInt, mark_shape

_SIZES = (torch.Tensor.shape.__get__, torch.Tensor.size)  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class Use:
    """A number passed to torch at a line of the model's code; `provenance` is None if no slot is involved.

    `site` and `path` are the call expression and the place of the number among its arguments; `function` is the name of
    the function of torch, and `call` the number of its call.
    """

    line: ForwardLine
    call: int
    function: str
    value: float
    provenance: Provenance | None
    site: CallSite | None
    path: ArgumentPath


@dataclass
class SizeTrace:
    """The numbers of a run in order, those of every call by its place in the code, and the equalities it tested."""

    uses: list[Use] = field(default_factory=list)
    calls: dict[Any, list[list[Use]]] = field(default_factory=dict)
    comparisons: Comparisons = field(default_factory=Comparisons)

    def add(self, place: Any, uses: list[Use]) -> None:
        """Record a call."""
        self.uses += uses
        self.calls.setdefault(place, []).append(uses)


@dataclass
class Replay:
    """Replay of a former run by the narrowed module, with the numbers in `targets` where it passes others.

    `demands` collects the numbers that each place in the code must pass, and `differs` the places that pass others.
    """

    former: SizeTrace
    targets: Mapping[Use, Any]
    demands: dict[tuple[CallSite, ArgumentPath], set[Any]] = field(default_factory=dict)
    differs: list[Use] = field(default_factory=list)
    counts: Counter[Any] = field(default_factory=Counter)

    def corrected(self, place: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments of a call with the numbers that it must pass."""
        calls, index = self.former.calls.get(place, []), self.counts[place]
        self.counts[place] += 1
        numbers = dict(_numbers((list(args), kwargs)))
        for use in calls[index] if index < len(calls) else ():
            target = self.targets.get(use)
            if use.site:
                self.demands.setdefault((use.site, use.path), set()).add(target)
            if target is not None and numbers.get(use.path) != target:
                self.differs.append(use)
                args, kwargs = replaced((list(args), kwargs), use.path, target)
        return args, kwargs


def trace_numbers(
    module: nn.Module, slots: Sequence[Slot], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> SizeTrace:
    """Numbers that a run of a module passes to torch, in order, with the slots they were computed from."""
    recorder = _NumberRecorder(Comparisons())
    _run(module, slots, recorder, (args, kwargs))
    return recorder.trace


def replay_numbers(
    module: nn.Module, slots: Sequence[Slot], replay: Replay, inputs: tuple[tuple[Any, ...], Mapping[str, Any]]
) -> Comparisons:
    """Run a narrowed module as a former run; return the equalities that no longer hold.

    Raises:
        Exception: whatever the module raises where other numbers and answers do not help.
    """
    recorder = _NumberRecorder(Comparisons(replay.former.comparisons), replay)
    _run(module, slots, recorder, inputs)
    return recorder.trace.comparisons


@torch.no_grad()
def _run(
    module: nn.Module, slots: Sequence[Slot], recorder: "_NumberRecorder", inputs: tuple[Any, Mapping[str, Any]]
) -> None:
    """Run on copies of inputs, with traced numbers in the slots, which are restored afterwards."""
    undo = Undo()
    args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, (inputs[0], dict(inputs[1])))
    with evaluation_mode(module), preserved_state(module):
        try:
            for slot in slots:
                reading = Provenance(operator.itemgetter(slot), frozenset([slot]), True, recorder.trace.comparisons)
                current = slot.current
                kind: Any = TracedInt if type(current) is int else TracedFloat
                slot.put(undo, kind(current, reading))
            with recorder:
                module(*args, **kwargs)
        finally:
            undo.rollback()


class _NumberRecorder(TorchFunctionMode):
    """Records the numbers in the arguments of every torch call, and marks the sizes of tensors as unknown."""

    def __init__(self, comparisons: Comparisons, replay: Replay | None = None) -> None:
        super().__init__()
        self.trace, self.replay = SizeTrace(comparisons=comparisons), replay

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_dynamo_compiling():  # a branch that torch compiles has no frames
            return func(*args, **kwargs)
        if func in _SIZES:
            return mark_shape(func(*args, **kwargs), self.trace.comparisons)
        numbers = list(_numbers((list(args), kwargs)))
        frame = sys._getframe(1)
        line = innermost_forward(frame) if numbers else None
        place = line, frame.f_code, frame.f_lasti, func
        if line and self.replay:
            args, kwargs = self.replay.corrected(place, args, kwargs)
        elif line:
            site = call_site(frame, func, len(args))
            name = getattr(func, "__name__", "")
            count = len(self.trace.uses)
            uses = [Use(line, count, name, n, getattr(n, "provenance", None), site, path) for path, n in numbers]
            self.trace.add(place, uses)
        return func(*args, **kwargs)


def _numbers(value: Any, path: ArgumentPath = ()) -> Iterator[tuple[ArgumentPath, float]]:
    """Numbers in the arguments of a call, in order, with their paths."""
    if isinstance(value, int | float):
        if not isinstance(value, bool):
            yield path, value
    elif isinstance(value, list | tuple | slice | dict):
        for key, item in _items(value):
            yield from _numbers(item, (*path, key))


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate((value.start, value.stop, value.step) if isinstance(value, slice) else value))


def replaced(value: Any, path: ArgumentPath, number: Any) -> Any:
    """Nested arguments with another number at the end of a path."""
    if not path:
        return number
    items = [(key, replaced(item, path[1:], number) if key == path[0] else item) for key, item in _items(value)]
    if isinstance(value, dict):
        return dict(items)
    changed = [item for _, item in items]
    return slice(*changed) if isinstance(value, slice) else changed if isinstance(value, list) else tuple(changed)
