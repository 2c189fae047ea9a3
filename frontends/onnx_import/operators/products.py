"""Linear layers: matrix products and convolutions."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from graphprune.frontends.onnx_import.onnx_values import NodeCall, Size
from graphprune.frontends.onnx_import.operators import MICROSOFT, translates
from graphprune.frontends.onnx_import.operators.rearranging import padded


@translates("MatMul")
def matmul(call: NodeCall) -> Tensor:
    return torch.matmul(call.tensor(0), call.tensor(1))


@translates("Gemm")
@translates("FusedGemm", domain=MICROSOFT)
def gemm(call: NodeCall) -> Tensor:
    a, b, c = call.tensor(0), call.tensor(1), call.optional(2)
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    a = a.t() if call.attribute("transA", 0) else a
    transposed = bool(call.attribute("transB", 0))
    if alpha != 1 or (beta != 1 and c is not None):
        product = torch.matmul(a, b.t() if transposed else b) * alpha
        return _activated(call, product if c is None else product + c * beta)
    bias = c if c is not None and c.dim() == 1 and c.shape[0] == b.shape[0 if transposed else 1] else None
    result = _product(a, b, bias, transposed)
    return _activated(call, result if c is None or bias is not None else result + c)


def _product(a: Tensor, b: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    if transposed:
        return F.linear(a, b, bias)
    return torch.matmul(a, b) if bias is None else torch.addmm(bias, a, b)


def _activated(call: NodeCall, x: Tensor) -> Tensor:
    """The result behind the activation of a fused operator."""
    name = call.attribute("activation", "")
    functions: dict[str, Any] = {"": lambda y: y, "Relu": F.relu, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid,
                                 "LeakyRelu": lambda y: F.leaky_relu(y, call.attribute("activation_alpha", 0.01)),
                                 "HardSigmoid": lambda y: F.hardsigmoid(y)}  # fmt: skip
    call.require(name in functions, f"the activation {name!r}")
    result: Tensor = functions[name](x)
    return result


@translates("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def fused_matmul(call: NodeCall) -> Tensor:
    call.require(not call.attribute("transBatchA", 0) and not call.attribute("transBatchB", 0), "transposed batches")
    sides = [call.tensor(0), call.tensor(1)]
    sides = [x.transpose(-1, -2) if call.attribute(name, 0) else x
             for x, name in zip(sides, ("transA", "transB"), strict=True)]  # fmt: skip
    alpha = call.attribute("alpha", 1.0)
    product = torch.matmul(*sides)
    return product if alpha == 1 else product * alpha


@translates("Einsum")
def einsum(call: NodeCall) -> Tensor:
    return torch.einsum(call.attribute("equation"), *call.tensors())


@translates("Conv")
@translates("FusedConv", domain=MICROSOFT)
def conv(call: NodeCall) -> Tensor:
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    spatial = weight.dim() - 2
    strides = call.attribute("strides") or [1] * spatial
    dilations = call.attribute("dilations") or [1] * spatial
    pads = window_pads(call, x.shape[2:], weight.shape[2:], strides, dilations)
    if pads[:spatial] != pads[spatial:]:
        x = padded(x, {i + 2: (pads[i], pads[i + spatial]) for i in range(spatial)})
        pads = [0] * (2 * spatial)
    function = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    result = function(x, weight, bias, strides, pads[:spatial], dilations, call.attribute("group", 1))
    result = result + call.tensor(3) if call.has(3) else result
    return _activated(call, result)


@translates("ConvTranspose")
def conv_transpose(call: NodeCall) -> Tensor:
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    spatial = weight.dim() - 2
    strides = call.attribute("strides") or [1] * spatial
    dilations = call.attribute("dilations") or [1] * spatial
    extra = call.attribute("output_padding") or [0] * spatial
    pads = transposed_pads(call, x.shape[2:], weight.shape[2:], strides, dilations, extra)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
    same = pads[:spatial] == pads[spatial:]
    y = function(x, weight, bias, strides, pads[:spatial] if same else 0, extra, call.attribute("group", 1), dilations)
    if not same:
        y = padded(y, {i + 2: (-pads[i], -pads[i + spatial]) for i in range(spatial)})
    return y


def window_pads(
    call: NodeCall, sizes: Sequence[Size], kernel: Sequence[Size], strides: Sequence[int], dilations: Sequence[int]
) -> list[Size]:
    """Padding before and after every spatial dimension, all of those before first."""
    kind = call.attribute("auto_pad", "NOTSET")
    if kind in ("NOTSET", "VALID"):
        none = [0] * (2 * len(kernel))
        return none if kind == "VALID" else list(call.attribute("pads") or none)
    before, after = [], []
    for size, window, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (int(window) - 1) * dilation + 1
        short = reach - stride if stride == 1 else ((size + stride - 1) // stride - 1) * stride + reach - size
        total = max(short, 0) if isinstance(short, int) else cast(Any, torch).sym_max(short, 0)
        pair = _halves(total, kind)
        before.append(pair[0])
        after.append(pair[1])
    return [*before, *after]


def transposed_pads(
    call: NodeCall, sizes: Sequence[Size], kernel: Sequence[Size], strides: Sequence[int], dilations: Sequence[int],
    extra: Sequence[int],
) -> list[Size]:  # fmt: skip
    """Indices that a transposed convolution removes at both ends of every spatial dimension, all first ends first."""
    kind, shape = call.attribute("auto_pad", "NOTSET"), call.attribute("output_shape")
    none = [0] * (2 * len(kernel))
    if shape is None and kind in ("NOTSET", "VALID"):
        return none if kind == "VALID" else list(call.attribute("pads") or none)
    pairs = []
    for i, (size, window, stride, dilation) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
        reach = (int(window) - 1) * dilation + 1 + extra[i]
        total = reach - stride if shape is None else (size - 1) * stride + reach - shape[i - len(kernel)]
        call.require(not isinstance(total, int) or total >= 0, "its output is larger than what it computes")
        pairs.append(_halves(total, kind))
    return [pair[side] for side in (0, 1) for pair in pairs]


def _halves(total: Size, kind: str) -> tuple[Size, Size]:
    """Padding before and after, whose odd one is after for SAME_UPPER."""
    small = total // 2
    return (small, total - small) if kind == "SAME_UPPER" else (total - small, small)
