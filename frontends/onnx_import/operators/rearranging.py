"""Shapes: reshaping, permuting, joining, splitting, padding and repeating."""

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from graphprune.frontends.onnx_import.onnx_values import (
    NodeCall,
    Size,
    UnsupportedError,
    dtype_of,
    is_symbolic,
    numbers_of,
    product,
)  # fmt: skip
from graphprune.frontends.onnx_import.operators import translates

FAR = 2**31 - 1  # a bound of a slice from here on means the end
_PADDING = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@translates("Shape")
def shape(call: NodeCall) -> np.ndarray:
    sizes = call.tensor(0).shape
    start, end = call.attribute("start", 0), call.attribute("end")
    return numbers_of(sizes[slice(start, end)])


@translates("Size")
def size(call: NodeCall) -> np.ndarray:
    return numbers_of([product(call.tensor(0).shape)])[0:1].reshape(())


@translates("Reshape")
def reshape(call: NodeCall) -> Tensor:
    x, target = call.tensor(0), call.sizes(1)
    if not call.attribute("allowzero", 0):
        target = [x.shape[i] if not is_symbolic(n) and n == 0 else n for i, n in enumerate(target)]
    return torch.reshape(x, target)


@translates("Flatten")
def flatten(call: NodeCall) -> Tensor:
    x, axis = call.tensor(0), call.attribute("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1 and x.dim() > 1:
        return torch.flatten(x, 1)
    return torch.reshape(x, [product(x.shape[:axis]), product(x.shape[axis:])])


@translates("Transpose")
def transpose(call: NodeCall) -> Tensor:
    x = call.tensor(0)
    return x.permute(call.attribute("perm") or list(reversed(range(x.dim()))))


@translates("Unsqueeze")
def unsqueeze(call: NodeCall) -> Tensor:
    x, axes = call.tensor(0), call.axes() or []
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@translates("Squeeze")
def squeeze(call: NodeCall) -> Tensor:
    x, axes = call.tensor(0), call.axes()
    axes = [i for i, n in enumerate(x.shape) if not is_symbolic(n) and n == 1] if axes is None else axes
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.squeeze(axis)
    return x


@translates("Concat")
def concat(call: NodeCall) -> Tensor:
    return torch.cat(call.tensors(), call.attribute("axis"))


@translates("Split")
def split(call: NodeCall) -> Any:
    x, axis = call.tensor(0), call.attribute("axis", 0)
    sizes: list[Size] | None = call.sizes(1) if call.has(1) else call.attribute("split")
    count = len(call.node.outputs)
    if sizes is None:
        whole = x.shape[axis]
        each = (whole + count - 1) // count  # rounded up without negative numbers, which ONNX divides otherwise
        sizes = [each] * (count - 1) + [whole - each * (count - 1)]
    return tuple(torch.split(x, sizes, axis)) if count > 1 else x


@translates("Slice")
def slices(call: NodeCall) -> Tensor:
    x = call.tensor(0)
    if call.opset < 10:
        starts, ends, axes, steps = call.attribute("starts"), call.attribute("ends"), call.attribute("axes"), None
    else:
        starts, ends = call.sizes(1), call.sizes(2)
        axes = call.sizes(3) if call.has(3) else None
        steps = call.sizes(4) if call.has(4) else None
    for start, end, axis, step in zip(
        starts, ends, axes or range(len(starts)), steps or [1] * len(starts), strict=True
    ):
        x = _sliced(x, axis, start, end, step)
    return x


def _sliced(x: Tensor, axis: int, start: Size, end: Size, step: Size) -> Tensor:
    if is_symbolic(step):
        raise UnsupportedError("a step that depends on sizes of inputs")
    if step < 0:
        return _reversed(x, axis, start, end, step)
    end = sys.maxsize if not is_symbolic(end) and end >= FAR else end
    if step == 1 and end == sys.maxsize and not is_symbolic(start) and start == 0:
        return x
    return torch.ops.aten.slice.Tensor(x, axis, start, end, step)  # type: ignore[no-any-return]


def _reversed(x: Tensor, axis: int, start: Size, end: Size, step: int) -> Tensor:
    length = x.shape[axis]
    whole = not is_symbolic(start) and not is_symbolic(end) and (start == -1 or start >= FAR) and end < -FAR
    if whole and step == -1:
        return torch.flip(x, [axis])
    if any(map(is_symbolic, (length, start, end))):
        raise UnsupportedError("a backward slice whose bounds depend on sizes of inputs")
    bounds = slice(start, None if end < -length else end, step).indices(length)
    return x.index_select(axis, torch.tensor(list(range(*bounds))))


@translates("Expand")
def expand(call: NodeCall) -> Tensor:
    x, target = call.tensor(0), call.sizes(1)
    rank = max(x.dim(), len(target))
    old, new = [1] * (rank - x.dim()) + list(x.shape), [1] * (rank - len(target)) + target
    sizes = [a if _is_one(b) else b for a, b in zip(old, new, strict=True)]
    return x.expand(sizes)


def _is_one(size: Size) -> bool:
    return not is_symbolic(size) and size == 1


@translates("Tile")
def tile(call: NodeCall) -> Tensor:
    return call.tensor(0).repeat(call.sizes(1))


@translates("Pad")
def pad(call: NodeCall) -> Tensor:
    x, mode = call.tensor(0), call.attribute("mode", "constant")
    pads = call.sizes(1) if call.opset >= 11 else call.attribute("pads")
    axes = [axis % x.dim() for axis in (call.sizes(3) if call.has(3) else range(x.dim()))]
    value = call.number(2, 0.0) if call.opset >= 11 else call.attribute("value", 0.0)
    return padded(x, dict(zip(axes, zip(pads, pads[len(axes) :], strict=False), strict=True)), _PADDING[mode], value)


def padded(x: Tensor, pads: dict[int, tuple[Size, Size]], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Tensor with padding before and after some dimensions."""
    changed = [axis for axis, pair in pads.items() if any(is_symbolic(n) or n != 0 for n in pair)]
    if not changed:
        return x
    first = min(changed) if mode == "constant" else 2
    flat = [n for axis in reversed(range(first, x.dim())) for n in pads.get(axis, (0, 0))]
    return F.pad(x, flat, mode, value) if mode == "constant" else F.pad(x, flat, mode)


@translates("DepthToSpace")
def depth_to_space(call: NodeCall) -> Tensor:
    x, block = call.tensor(0), call.attribute("blocksize")
    if call.attribute("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


@translates("SpaceToDepth")
def space_to_depth(call: NodeCall) -> Tensor:
    x, block = call.tensor(0), call.attribute("blocksize")
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)


@translates("ConstantOfShape")
def constant_of_shape(call: NodeCall) -> Tensor:
    value = call.attribute("value")
    array = np.zeros(1, np.float32) if value is None else value.numpy()
    return torch.full(call.sizes(0), array.reshape(-1)[0].item(), dtype=torch.from_numpy(array.copy()).dtype)


@translates("Range")
def number_range(call: NodeCall) -> Tensor:
    start, limit, delta = (call.number(index) for index in range(3))
    whole = all(isinstance(n, int) or is_symbolic(n) for n in (start, limit, delta))
    return torch.arange(start, limit, delta, dtype=torch.int64 if whole else torch.float32)


@translates("EyeLike")
def eye_like(call: NodeCall) -> Tensor:
    x = call.tensor(0)
    dtype = dtype_of(call.attribute("dtype")) if call.attribute("dtype") else x.dtype
    call.require(call.attribute("k", 0) == 0, "a diagonal other than the main one")
    return torch.eye(*x.shape, dtype=dtype)


@translates("Trilu")
def triangle(call: NodeCall) -> Tensor:
    function = torch.triu if call.attribute("upper", 1) else torch.tril
    return function(call.tensor(0), call.number(1, 0))
