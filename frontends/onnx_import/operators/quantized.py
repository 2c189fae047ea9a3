"""Quantized weights and activations as floating-point numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphprune.frontends.onnx_import.onnx_values import NodeCall, UnsupportedError
from graphprune.frontends.onnx_import.operators import MICROSOFT, products, translates
from graphprune.support.packages import onnx_ir as ir

#: Operators that compute with rounded numbers.
NAMES = (
    "DequantizeLinear", "QuantizeLinear", "com.microsoft::DequantizeLinear", "com.microsoft::QuantizeLinear",
    "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger",
    "com.microsoft::MatMulNBits", "com.microsoft::GatherBlockQuantized",
)  # fmt: skip
ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear")  # of activations
_ZERO_ALONG = {"MatMulInteger": -1, "ConvInteger": 0}  # dimension of the zero points of the weight


@translates("DequantizeLinear")
@translates("DequantizeLinear", domain=MICROSOFT)
def dequantize(call: NodeCall) -> Any:
    """The numbers of codes, such as rows of a table; of activations the input, which was not rounded."""
    codes = call.inputs[0]
    if not isinstance(codes, Tensor):
        return dequantized(call)
    if codes.is_floating_point():
        return codes
    scale, zero = call.tensor(1), call.tensor(2) if call.has(2) else torch.zeros(())
    axis = call.attribute("axis", 1)
    return (codes.float() - _spread(zero, codes.dim(), axis)) * _spread(scale, codes.dim(), axis)


def _spread(part: Tensor, rank: int, axis: int) -> Tensor:
    """Numbers for one axis of a tensor of this rank, or one number for all of it."""
    if part.numel() == 1:
        return part.float().reshape(())
    if part.dim() != 1:
        raise UnsupportedError("codes in blocks that are looked up")
    return part.float().reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def dequantized(call: NodeCall) -> np.ndarray:
    """Numbers of stored codes: ``(code - zero) * scale``, for the tensor, for an axis or for blocks of it."""
    codes, scale = call.numbers(0), call.numbers(1)
    zero = call.numbers(2).astype(np.float32) if call.has(2) else np.float32(0)
    axis, block = call.attribute("axis", 1), call.attribute("block_size", 0)
    wide = [_along(np.asarray(part, dtype=np.float32), codes, axis, block) for part in (scale, zero)]
    result: np.ndarray = ((codes.astype(np.float32) - wide[1]) * wide[0]).astype(scale.dtype)
    return result


def _along(part: np.ndarray, codes: np.ndarray, axis: int, block: int) -> np.ndarray:
    if part.ndim == codes.ndim and block:
        return np.repeat(part, block, axis)[tuple(slice(n) for n in codes.shape)]
    if part.ndim == 1 and part.size > 1:
        return part.reshape([-1 if i == axis % codes.ndim else 1 for i in range(codes.ndim)])
    return part


@translates("QuantizeLinear")
@translates("QuantizeLinear", domain=MICROSOFT)
def quantize(call: NodeCall) -> Any:
    """The input within the bounds of the codes, unrounded: a pruned model is quantized anew.

    The bounds may be all that is left of an activation: quantizers remove a ReLU whose output has the zero point 0.
    """
    x = call.tensor(0)
    if not isinstance(call.inputs[0], Tensor) and not call.rounding:  # a weight, whose codes hold all of it
        return x
    zero = call.numbers(2) if call.has(2) else np.zeros((), _kind(call))
    lowest, highest = _limits(zero.dtype)
    scale, shift = (
        torch.from_numpy(np.asarray(part, np.float32)) for part in (call.numbers(1), zero.astype(np.float32))
    )
    axis = call.attribute("axis", 1)
    step, origin = _spread(scale, x.dim(), axis), _spread(shift, x.dim(), axis)
    if call.rounding:
        codes = (torch.round(x.float() / step) + origin).clamp(lowest, highest)
        return ((codes - origin) * step).to(x.dtype)
    call.require(step.dim() == 0 and origin.dim() == 0, "activations with a scale for each index")
    low, high = ((bound - origin.item()) * step.item() for bound in (lowest, highest))
    return torch.clamp(x, low, high)


def _kind(call: NodeCall) -> np.dtype[Any]:
    """Type of the codes where no zero point has it."""
    kind = call.attribute("output_dtype", 0)
    return np.dtype(ir.DataType(kind).numpy()) if kind else np.dtype(np.uint8)


def _limits(kind: np.dtype[Any]) -> tuple[int, int]:
    """Least and greatest code of a type.

    Raises:
        UnsupportedError: if it is no type of integers.
    """
    match = re.fullmatch(r"(u?)int(\d+)", kind.name)
    if match is None:
        raise UnsupportedError(f"codes of type {kind.name}")
    unsigned, bits = bool(match[1]), int(match[2])
    return (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def unpacked(call: NodeCall) -> np.ndarray:
    """Matrix of shape ``(inputs, outputs)`` of packed numbers of 4 or 8 bits in blocks."""
    bits, block = call.attribute("bits", 4), call.attribute("block_size")
    rows, columns = call.attribute("K"), call.attribute("N")
    if bits not in (4, 8):
        raise UnsupportedError(f"numbers of {bits} bits")
    count = -(-rows // block)
    codes = _codes(call.numbers(1).reshape(columns, count, -1), bits)
    scale = call.numbers(2).reshape(columns, count, 1)
    zero: Any = 2 ** (bits - 1)
    if call.has(3):
        zeros = call.numbers(3)
        if zeros.dtype == np.uint8:
            zeros = _codes(zeros.reshape(columns, -1), bits)[:, :count]
        zero = zeros.reshape(columns, count, 1).astype(np.float32)
    matrix = (codes.astype(np.float32) - zero) * scale.astype(np.float32)
    return np.ascontiguousarray(matrix.reshape(columns, -1)[:, :rows].T).astype(scale.dtype)


def _codes(packed: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


@translates("MatMulNBits", domain=MICROSOFT)
def packed_product(call: NodeCall) -> Tensor:
    """Product with a matrix that `unpacked` has replaced before the run."""
    weight = call.inputs[1]
    if not isinstance(weight, Tensor):
        weight = call.tensor(1)
    result = torch.matmul(call.tensor(0), weight)
    return result + call.tensor(5) if call.has(5) else result


@translates("DynamicQuantizeLinear")
def dynamic(call: NodeCall) -> Any:
    """The unrounded input, with the scale 1 and the zero point 0."""
    x = call.tensor(0)
    if call.rounding:
        low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
        step = (high - low) / 255
        zero = torch.round(-low / step).clamp(0, 255)
        x = ((torch.round(x / step) + zero).clamp(0, 255) - zero) * step
    return x, np.array(1, dtype=np.float32), np.array(0, dtype=np.uint8)


def stored_floats(call: NodeCall) -> np.ndarray | None:
    """Floating-point numbers in place of the second input of a node, which has codes; None for other nodes."""
    if call.node.op_type == "MatMulNBits":
        return unpacked(call)
    return shifted(call) if call.node.op_type in _ZERO_ALONG else None


def shifted(call: NodeCall) -> np.ndarray:
    """The codes of a weight minus their zero points; a node behind multiplies by their scale."""
    codes = call.numbers(1).astype(np.float32)
    zero = call.numbers(3).astype(np.float32) if call.has(3) else np.zeros((), np.float32)
    axis = _ZERO_ALONG[call.node.op_type] % codes.ndim
    return codes - (zero.reshape(()) if zero.size == 1 else _along(zero, codes, axis, 0))


@translates("MatMulInteger")
def integer_product(call: NodeCall) -> Tensor:
    return torch.matmul(*_integers(call))


@translates("ConvInteger")
def integer_convolution(call: NodeCall) -> Tensor:
    result: Tensor = products.conv(replace(call, inputs=_integers(call)))
    return result


def _integers(call: NodeCall) -> tuple[Tensor, Tensor]:
    """Both sides of a product, minus their zero points; `shifted` has replaced a weight before the run."""
    sides = []
    for side, zero in ((0, 2), (1, 3)):
        tensor = call.tensor(side)
        if not tensor.is_floating_point():
            call.require(not call.has(zero) or call.tensor(zero).numel() == 1, "zero points of rows")
            tensor = tensor.float() - (call.tensor(zero).float() if call.has(zero) else 0.0)
        sides.append(tensor)
    return sides[0], sides[1]
