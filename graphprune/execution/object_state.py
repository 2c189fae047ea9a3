"""State of the objects that modules reach, recorded before a run and restored after it."""

import logging
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy

MOST = 100_000  # objects to look at: models hold few, but may refer to whole data sets

#: Values without state of their own.
_ATOMS = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type, FunctionType, BuiltinFunctionType,
    MethodType, ModuleType, torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, logging.Logger,
    WeakKeyDictionary, WeakValueDictionary, WeakSet,
)  # fmt: skip


class ObjectState:
    """State of everything reachable from `roots`: attributes, slots, containers, random generators, small tensors.

    Base classes of containers read and restore them, so that methods which a subclass overrides, to forbid changes say,
    never run. `tensors` holds all reachable tensors. Numbers are copied of those that modules or their containers hold,
    except parameters.
    """

    def __init__(self, roots: Iterable[object]) -> None:
        self.tensors: list[Tensor] = []
        self._undo: list[Callable[[], None]] = []
        self._seen: dict[int, object] = {}
        pending = [(root, True) for root in roots]
        while pending and len(self._seen) < MOST:
            value, is_own = pending.pop()
            if id(value) in self._seen or issubclass(type(value), _ATOMS):
                continue
            self._seen[id(value)] = value
            if issubclass(type(value), Tensor):
                self._record_tensor(value, is_own)
            else:
                own = is_own and issubclass(type(value), (nn.Module, dict, list, tuple, set, deque))
                pending += [(child, own) for child in self._record(value)]

    def restore(self) -> None:
        """Give everything that changed the state that it had."""
        for undo in reversed(self._undo):
            undo()

    def _record_tensor(self, tensor: Any, is_own: bool) -> None:
        if is_lazy(tensor):
            return
        self.tensors.append(tensor)
        has_numbers = tensor.layout is torch.strided and not tensor.is_meta and not isinstance(tensor, FakeTensor)
        if is_own and has_numbers and not isinstance(tensor, nn.Parameter):
            numbers = tensor.detach().clone()
            self._undo.append(lambda: _write(tensor, numbers))

    def _record(self, value: Any) -> Iterator[object]:
        """Record one object; return the objects in it."""
        kind = type(value)
        for base, record in _RECORDS.items():
            if issubclass(kind, base):
                yield from record(self._undo, value)
        try:
            attributes = object.__getattribute__(value, "__dict__")
        except AttributeError:
            attributes = None
        if type(attributes) is dict:
            yield from _record_dict(self._undo, attributes)
        yield from _record_slots(self._undo, value)


def _record_dict(undo: list[Callable[[], None]], value: Any) -> Iterator[object]:
    base: Any = OrderedDict if issubclass(type(value), OrderedDict) else dict
    before = list(base.items(value))

    def restore() -> None:
        now = list(base.items(value))
        if len(now) == len(before) and all(a is c and b is d for (a, b), (c, d) in zip(now, before, strict=True)):
            return
        base.clear(value)
        for key, item in before:
            base.__setitem__(value, key, item)

    undo.append(restore)
    return (item for _, item in before)


def _record_list(undo: list[Callable[[], None]], value: Any) -> Iterator[object]:
    return _record_items(undo, value, list.__iter__, lambda before: list.__setitem__(value, slice(None), before))


def _record_deque(undo: list[Callable[[], None]], value: Any) -> Iterator[object]:
    def write(before: list[object]) -> None:
        deque.clear(value)
        deque.extend(value, before)

    return _record_items(undo, value, deque.__iter__, write)


def _record_set(undo: list[Callable[[], None]], value: Any) -> Iterator[object]:
    def write(before: list[object]) -> None:
        set.clear(value)
        set.update(value, before)

    return _record_items(undo, value, set.__iter__, write)


def _record_items(
    undo: list[Callable[[], None]],
    value: Any,
    read: Callable[[Any], Iterator[object]],
    write: Callable[[list[object]], None],
) -> Iterator[object]:
    """Record the items of a container, which are written again if they changed."""
    before = list(read(value))

    def restore() -> None:
        if not _alike(before, read(value)):
            write(before)

    undo.append(restore)
    return iter(before)


def _record_tuple(_: list[Callable[[], None]], value: Any) -> Iterator[object]:
    return tuple.__iter__(value)


def _record_generator(undo: list[Callable[[], None]], value: Any) -> Iterator[object]:
    before = value.get_state()
    undo.append(lambda: value.set_state(before))
    return iter(())


def _record_random(undo: list[Callable[[], None]], value: Any) -> Iterator[object]:
    before = value.getstate()
    undo.append(lambda: value.setstate(before))
    return iter(())


_RECORDS: dict[type, Callable[[list[Callable[[], None]], Any], Iterator[object]]] = {
    dict: _record_dict, list: _record_list, deque: _record_deque, set: _record_set, tuple: _record_tuple,
    torch.Generator: _record_generator, random.Random: _record_random,
}  # fmt: skip


def _record_slots(undo: list[Callable[[], None]], value: Any) -> Iterator[object]:
    """Record the slots of classes in Python; an empty slot becomes empty again."""
    for kind in type(value).__mro__:
        for slot in vars(kind).values() if "__slots__" in vars(kind) else ():
            if isinstance(slot, MemberDescriptorType):
                yield from _record_slot(undo, value, slot)


def _record_slot(undo: list[Callable[[], None]], value: Any, slot: MemberDescriptorType) -> Iterator[object]:
    empty = object()

    def read() -> object:
        try:
            return slot.__get__(value)
        except AttributeError:
            return empty

    before = read()

    def restore() -> None:
        if read() is not before:
            slot.__delete__(value) if before is empty else slot.__set__(value, before)

    undo.append(restore)
    if before is not empty:
        yield before


def _alike(before: list[object], now: Iterable[object]) -> bool:
    """Whether the items are the same objects."""
    items = list(now)
    return len(items) == len(before) and all(a is b for a, b in zip(before, items, strict=True))


def _write(tensor: Tensor, numbers: Tensor) -> None:
    same_kind = tensor.shape == numbers.shape and tensor.dtype == numbers.dtype
    if same_kind and torch.equal(tensor, numbers):
        return
    with torch.no_grad(), torch.inference_mode(tensor.is_inference()):
        if same_kind:
            tensor.copy_(numbers)
        else:
            tensor.data = numbers
