"""Quantized weights and activations as floating-point numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphprune.frontends.onnx_import.onnx_values import NodeCall, UnsupportedError
from graphprune.frontends.onnx_import.operators import MICROSOFT, translates

#: Operators that compute with rounded numbers.
NAMES = (
    "DequantizeLinear", "QuantizeLinear", "com.microsoft::DequantizeLinear", "com.microsoft::QuantizeLinear",
    "com.microsoft::MatMulNBits", "com.microsoft::GatherBlockQuantized",
)  # fmt: skip


@translates("DequantizeLinear")
@translates("DequantizeLinear", domain=MICROSOFT)
def dequantize(call: NodeCall) -> Any:
    """The numbers themselves, if nothing rounded them before the run; else the input, which then was not rounded."""
    if isinstance(call.inputs[0], Tensor):
        return call.inputs[0]
    return dequantized(call)


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
    """The unrounded input: a pruned model is quantized anew."""
    return call.tensor(0)


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
    call.require(False, "activations are quantized while it runs; take the file before quantization")
