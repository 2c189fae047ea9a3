"""Methods that can take the place of a layer's forward: with them, attributes that only they read are determined.

Exporters put such methods there, as in ``layer.forward = layer.forward_split``.
"""

import dis
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, pairwise, product
from types import CodeType, FunctionType
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from graphprune.execution.module_state import preserved_state, seeded
from graphprune.execution.output_comparison import compare
from graphprune.support.undo import Undo
from graphprune.writeback.attribute_slots import Slot
from graphprune.writeback.call_sites import first_parameter, nested_code

log = logging.getLogger(__name__)

TRIALS = 64  # combinations of values
_SETTING_UP = ("extra_repr", "reset_parameters", "_reset_parameters", "init_weights", "_init_weights")

#: Inputs and output of a layer.
Call = tuple[tuple[Any, ...], dict[str, Any], Any]
Possible = Mapping[Slot, Sequence[int]]


def agreeing(run: Callable[[], object], possible: Possible) -> dict[Slot, Sequence[int]]:
    """The possible values of attributes with which the methods that read them compute what their forward computes.

    All of them, where no method tells. `run` calls the narrowed module, in evaluation mode.
    """
    methods: dict[nn.Module, dict[str, None]] = {}
    for slot in possible:
        if isinstance(slot.owner, nn.Module):
            names = [name for name in _readers(slot) if _stands_in(slot.owner, name)]
            methods.setdefault(slot.owner, {}).update(dict.fromkeys(names))
    layers = [layer for layer, names in methods.items() if names]
    calls = _calls(run, layers) if layers else {}
    result = dict(possible)
    for layer, call in calls.items():
        for name in methods[layer]:
            own = {s: result[s] for s in result if s.owner is layer and name in _readers(s)}
            accepted = [values for values in _combinations(own) if _agrees(layer, name, call, values)]
            for slot in own if accepted else ():
                result[slot] = sorted({values[slot] for values in accepted})
    return result


def warn_of_readers(unset: Sequence[Slot]) -> None:
    """Log attributes that equal a former width, were not set, and are read by a method besides the forward."""
    readers: dict[str, list[str]] = {}
    for slot in unset:
        if names := _readers(slot):
            readers[f"{slot} = {slot.value}"] = [f"{type(slot.owner).__name__}.{name}" for name in names]
    for attribute, methods in readers.items():
        log.warning(
            "%s equals a former width, and is read by %s: no single new value is known to be right there, so set it or "
            "do not call that method",
            attribute,
            ", ".join(methods),
        )


def _readers(slot: Slot) -> list[str]:
    """Methods of the owner's class, besides its forward and those that set it up, that read the slot's attribute."""
    attribute = slot.path[0] if slot.path else slot.key
    classes = [kind for kind in type(slot.owner).__mro__ if not kind.__module__.startswith("torch.")]
    names = dict.fromkeys(name for kind in classes for name in vars(kind))
    return [
        name
        for name in names
        if name not in ("forward", *_SETTING_UP) and not name.startswith("__")
        if any(_reads(code, attribute, receiver) for receiver, code in _code_of(type(slot.owner), name))
    ]


def _reads(code: CodeType, attribute: str, receiver: str) -> bool:
    """Whether code reads an attribute of the receiver of its method, not of another object."""
    steps = pairwise(dis.get_instructions(code))
    return any(
        second.opname in ("LOAD_ATTR", "LOAD_METHOD") and second.argval == attribute and _loads(first, receiver)
        for first, second in steps
    )


def _loads(step: dis.Instruction, name: str) -> bool:
    last = step.argval[-1] if isinstance(step.argval, tuple) else step.argval
    return step.opname.startswith(("LOAD_FAST", "LOAD_DEREF")) and last == name


def _code_of(kind: type, name: str) -> Iterator[tuple[str, CodeType]]:
    """Code of a method and of the functions inside it, each with the name of the method's receiver."""
    function = inspect.unwrap(getattr(kind, name, None) or object)
    if isinstance(function, FunctionType):
        receiver, _ = first_parameter(function.__code__)
        yield from ((receiver, code) for code in nested_code(function.__code__))


def _stands_in(layer: nn.Module, name: str) -> bool:
    """Whether the name says that it is a forward, and the arguments are those of the forward."""
    if "forward" not in name:
        return False
    parameters = [[*inspect.signature(getattr(type(layer), n)).parameters] for n in (name, "forward")]
    return parameters[0] == parameters[1]


def _calls(run: Callable[[], object], layers: Sequence[nn.Module]) -> dict[nn.Module, Call]:
    """The first call of each layer."""
    calls: dict[nn.Module, Call] = {}
    inputs: dict[nn.Module, tuple[Any, Any]] = {}

    def before(layer: nn.Module, args: Any, kwargs: Any) -> None:
        inputs.setdefault(layer, _copied((args, kwargs)))

    def after(layer: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        calls.setdefault(layer, (*inputs[layer], _copied(output)))

    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(after, with_kwargs=True) for layer in layers]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _copied(values: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), values)


def _combinations(possible: Possible) -> Iterator[dict[Slot, int]]:
    for values in islice(product(*possible.values()), TRIALS):
        yield dict(zip(possible, values, strict=True))


@torch.no_grad()
def _agrees(layer: nn.Module, name: str, call: Call, values: Mapping[Slot, int]) -> bool:
    """Whether a method computes what the forward does, with these values in the slots, which are restored."""
    args, kwargs, expected = call
    undo = Undo()
    try:
        for slot, value in values.items():
            slot.put(undo, value)
        with preserved_state(layer), seeded(0):
            args, kwargs = _copied((args, kwargs))
            compare(expected, getattr(layer, name)(*args, **kwargs), name)
    except Exception:  # a wrong size may raise any exception in the module's code
        return False
    finally:
        undo.rollback()
    return True
