"""Call sites: the expression, in a method of a module, that handed numbers to a torch function."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

#: A line of a forward: the identity of the module that runs, the file and the line number.
ForwardLine = tuple[int, str, int]
#: Way from the arguments of a call to a number in them: a position or keyword, then indices of nested lists.
ArgumentPath = tuple[int | str, ...]
#: First line, last line, first column and last column of an expression.
Span = tuple[int, int, int, int]

_TORCH = str(Path(torch.__file__).parent)
_MODULE_CALL = nn.Module._call_impl.__code__


@dataclass(frozen=True)
class CallSite:
    """An expression in a method of a module that calls a torch function, by the lines and columns of its span.

    `function` is the name of the torch function, `bound` tells whether its first argument is the object before the dot,
    and `positional` counts the arguments without a keyword.
    """

    receiver: nn.Module
    method: str
    span: Span
    function: str
    bound: bool
    positional: int


def innermost_forward(frame: FrameType | None) -> ForwardLine | None:
    """The module that is executed, and the line in the innermost forward; None outside of any module."""
    line: tuple[str, int] | None = None
    for caller in _callers(frame):
        if caller.f_code.co_name == "forward":
            line = line or (caller.f_code.co_filename, caller.f_lineno)
        if caller.f_code is _MODULE_CALL:
            return id(caller.f_locals["self"]), *(line or ("", 0))
    return None


def call_site(frame: FrameType | None, function: Any, positional: int) -> CallSite | None:
    """The expression that is executed in a method of a module, or in a function nested in one."""
    caller = next((f for f in _callers(frame) if _is_of_model(f)), None)
    span = _span(caller) if caller and caller.f_code is not _MODULE_CALL else None
    if caller is None or span is None:
        return None
    name = getattr(function, "__name__", "")
    for outer in _callers(caller):
        receiver = _receiver(outer)
        if receiver is not None:
            inside = caller.f_code in nested_code(outer.f_code)
            bound = getattr(torch.Tensor, name, None) is function
            return CallSite(receiver, outer.f_code.co_name, span, name, bound, positional) if inside else None
    return None


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_of_model(frame: FrameType) -> bool:
    """Whether the frame runs code outside of torch, or is the call of a layer of torch."""
    return frame.f_code is _MODULE_CALL or not frame.f_code.co_filename.startswith(_TORCH)


def _span(frame: FrameType) -> Span | None:
    """Span of the expression that the frame executes."""
    line, last, column, end = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    return None if line is None or last is None or column is None or end is None else (line, last, column, end)


def _receiver(frame: FrameType) -> nn.Module | None:
    """The module whose method the frame executes; its first parameter may have any name."""
    code = frame.f_code
    parameter, index = first_parameter(code)
    first = frame.f_locals.get(parameter)
    if index is not None:
        first = first[index] if isinstance(first, tuple) and first else None
    if not isinstance(first, nn.Module):
        return None
    method = inspect.unwrap(getattr(type(first), code.co_name, None) or _receiver)
    return first if getattr(method, "__code__", None) is code else None


def first_parameter(code: CodeType) -> tuple[str, int | None]:
    """Name of the parameter that holds a method's receiver, and its index there if that is a tuple, as ``*args``."""
    if code.co_argcount:
        return code.co_varnames[0], None
    return (code.co_varnames[code.co_kwonlyargcount], 0) if code.co_flags & inspect.CO_VARARGS else ("", None)


def nested_code(code: CodeType) -> Iterator[CodeType]:
    """A code object, and those of the functions and comprehensions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested_code(constant)
