"""Values of an ONNX graph while it runs: tensors, and numbers that are known at the capture, such as sizes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import SymBool, SymFloat, SymInt, Tensor

from graphprune.support.packages import onnx_ir as ir

#: A tensor; numbers, some of which may be symbols (dtype object); a tensor of the file; or an absent optional input.
Value = Any
Size = Any  # int or SymInt
SMALL = 64  # numbers of a constant that is computed with as numbers

_BY_VIEW = {"bfloat16": (np.int16, torch.bfloat16)}


class UnsupportedError(Exception):
    """A node cannot be translated; the message is the reason."""


@dataclass(frozen=True)
class FileTensor:
    """Tensor of the file, or computed from such alone: its numbers, and how the module reads it in a run."""

    name: str
    source: Any = field(repr=False)  # a tensor of onnx_ir, or an array
    read: Callable[[str], Tensor] | None = field(default=None, repr=False)

    @cached_property
    def array(self) -> np.ndarray:
        """The numbers; those of external files are memory-mapped."""
        array: np.ndarray = self.source if isinstance(self.source, np.ndarray) else self.source.numpy()
        return array

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, without reading numbers."""
        shape = self.source.shape
        return tuple(shape.numpy()) if hasattr(shape, "numpy") else tuple(shape)

    @property
    def is_weight(self) -> bool:
        """Whether it is a weight rather than a number to compute with: floating point, and no scalar."""
        return bool(self.shape) and _is_float(self.source)

    def tensor(self) -> Tensor:
        """The tensor of the module, or a new one."""
        return self.read(self.name) if self.read is not None else to_tensor(self.array)


def _is_float(source: Any) -> bool:
    if isinstance(source, np.ndarray):
        return source.dtype.kind == "f" or source.dtype.name in _BY_VIEW
    return source.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def to_tensor(array: np.ndarray) -> Tensor:
    """Tensor over the memory of an array, where torch has its type.

    Raises:
        UnsupportedError: if torch has no such type.
    """
    own = np.ascontiguousarray(array).reshape(array.shape)
    view, dtype = _BY_VIEW.get(array.dtype.name, (None, None))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the memory of a mapped file cannot be written, and is not
            tensor = torch.from_numpy(own if view is None else own.view(view))
        return tensor if dtype is None else tensor.view(dtype)
    except TypeError as fault:
        raise UnsupportedError(f"numbers of type {array.dtype}, which torch does not compute with") from fault


def dtype_of(kind: int) -> torch.dtype:
    """Type of torch for a number of an ONNX type.

    Raises:
        UnsupportedError: if torch has no such type.
    """
    try:
        return to_tensor(np.empty(0, ir.DataType(kind).numpy())).dtype
    except (TypeError, ValueError) as fault:
        raise UnsupportedError(f"the type {kind}, which torch does not compute with") from fault


def is_symbolic(value: Any) -> bool:
    """Whether a number depends on the sizes of inputs."""
    return isinstance(value, SymInt | SymFloat | SymBool)


def numbers_of(sizes: Sequence[Size]) -> np.ndarray:
    """Array of sizes, of integers if none is a symbol."""
    if any(map(is_symbolic, sizes)):
        array = np.empty(len(sizes), dtype=object)
        array[:] = list(sizes)
        return array
    return np.array([int(size) for size in sizes], dtype=np.int64)


def plain(array: np.ndarray) -> np.ndarray:
    """Array without the dtype object, if no entry is a symbol."""
    if array.dtype != object or any(map(is_symbolic, array.flat)):
        return array
    return np.array(array.tolist())


def known(value: Value) -> np.ndarray | None:
    """Numbers of a value to compute with while the graph is captured; None for tensors and weights."""
    if isinstance(value, np.ndarray):
        return value
    return value.array if isinstance(value, FileTensor) and not value.is_weight else None


def as_tensor(value: Value) -> Tensor:
    """Tensor of a value; symbols become tensors that follow the sizes of inputs."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, FileTensor):
        return value.tensor()
    if value.dtype != object:
        flat = value.reshape(-1)
        if value.size and (flat == flat[0]).all():
            return torch.full(value.shape, flat[0].item(), dtype=to_tensor(flat[:0]).dtype)
        return torch.tensor(value.tolist(), dtype=to_tensor(value.reshape(-1)[:0]).dtype)
    items = [torch.full((), item, dtype=_scalar_type(item)) for item in value.flat]
    return torch.stack(items).reshape(value.shape) if value.ndim else items[0]


def _scalar_type(item: Any) -> torch.dtype:
    return torch.float32 if isinstance(item, float | SymFloat) else torch.int64


@dataclass(frozen=True)
class NodeCall:
    """A node with the values of its inputs; `rounding` asks for activations that are rounded as in the file."""

    node: Any
    inputs: tuple[Value, ...]
    opset: int
    rounding: bool = False

    def has(self, index: int) -> bool:
        """Whether an optional input is there."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def tensor(self, index: int) -> Tensor:
        """Tensor of an input.

        Raises:
            UnsupportedError: if it is absent.
        """
        if not self.has(index):
            raise UnsupportedError(f"its input {index} is missing")
        return as_tensor(self.inputs[index])

    def tensors(self) -> list[Tensor]:
        """Tensors of all inputs."""
        return [self.tensor(index) for index in range(len(self.inputs))]

    def optional(self, index: int) -> Tensor | None:
        """Tensor of an input that may be absent."""
        return self.tensor(index) if self.has(index) else None

    def numbers(self, index: int) -> np.ndarray:
        """Numbers of an input that must be known while the graph is captured.

        Raises:
            UnsupportedError: if it is computed from values of inputs.
        """
        value = self.inputs[index]
        if isinstance(value, np.ndarray):
            return value
        if isinstance(value, FileTensor):
            return value.array
        raise UnsupportedError(f"its input {index} ({self.input_name(index)}) is computed from values of the inputs")

    def sizes(self, index: int) -> list[Size]:
        """Integers of an input that may be symbols."""
        return [item if is_symbolic(item) else int(item) for item in self.numbers(index).reshape(-1)]

    def number(self, index: int, default: Any = None) -> Any:
        """The single number of an input, or `default` if it is absent."""
        if not self.has(index):
            return default
        item = self.numbers(index).reshape(-1)[0]
        return item if is_symbolic(item) else item.item()

    def operand(self, index: int, rank: int) -> Any:
        """Operand of arithmetic with a tensor of this rank: a number where it is one, else a tensor."""
        array = known(self.inputs[index])
        if array is not None and array.size == 1 and array.ndim <= rank:
            item = array.reshape(-1)[0]
            return item if is_symbolic(item) else item.item()
        return self.tensor(index)

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute."""
        attribute = self.node.attributes.get(name)
        if attribute is None:
            return default
        value = attribute.value
        return list(value) if isinstance(value, tuple) else value

    def axes(self, index: int = 1) -> list[int] | None:
        """The attribute `axes`, which is an input in later opsets; None if it is absent."""
        if self.has(index):
            return [int(axis) for axis in self.numbers(index).reshape(-1)]
        axes: list[int] | None = self.attribute("axes")
        return axes

    def input_name(self, index: int) -> str:
        """Name of an input."""
        return str(self.node.inputs[index].name)

    def require(self, condition: bool, reason: str) -> None:
        """Refuse the node for a reason unless the condition holds.

        Raises:
            UnsupportedError: with the reason.
        """
        if not condition:
            raise UnsupportedError(reason)


def product(sizes: Sequence[Size]) -> Size:
    """Product of sizes."""
    return math.prod(sizes)
