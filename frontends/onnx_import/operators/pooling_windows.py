"""Pooling, and images of other sizes."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graphprune.frontends.onnx_import.onnx_values import NodeCall, Size, UnsupportedError, is_symbolic
from graphprune.frontends.onnx_import.operators import translates
from graphprune.frontends.onnx_import.operators.products import window_pads
from graphprune.frontends.onnx_import.operators.rearranging import padded

_MODES = {("nearest", 1): "nearest", ("nearest", 2): "nearest", ("nearest", 3): "nearest", ("linear", 1): "linear",
          ("linear", 2): "bilinear", ("linear", 3): "trilinear", ("cubic", 2): "bicubic"}  # fmt: skip


@translates("MaxPool")
def max_pool(call: NodeCall) -> Any:
    x, kernel = call.tensor(0), call.attribute("kernel_shape")
    spatial = len(kernel)
    strides, dilations = call.attribute("strides") or [1] * spatial, call.attribute("dilations") or [1] * spatial
    pads = window_pads(call, x.shape[2:], kernel, strides, dilations)
    x, even = _evened(x, pads, kernel, -math.inf)
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[spatial - 1]
    call.require(len([out for out in call.node.outputs if out.uses()]) < 2, "its indices are used")
    return function(x, kernel, strides, even, dilations, bool(call.attribute("ceil_mode", 0)))


@translates("AveragePool")
def average_pool(call: NodeCall) -> Tensor:
    x, kernel = call.tensor(0), call.attribute("kernel_shape")
    spatial = len(kernel)
    strides, dilations = call.attribute("strides") or [1] * spatial, call.attribute("dilations") or [1] * spatial
    call.require(set(dilations) == {1}, "dilations")
    pads = window_pads(call, x.shape[2:], kernel, strides, dilations)
    counted, ceil = bool(call.attribute("count_include_pad", 0)), bool(call.attribute("ceil_mode", 0))
    function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[spatial - 1]
    if pads[:spatial] == pads[spatial:] and all(2 * p <= k for p, k in zip(pads, kernel, strict=False)):
        result: Tensor = function(x, kernel, strides, pads[:spatial], ceil, counted)
        return result
    wide = {i + 2: (pads[i], pads[i + spatial]) for i in range(spatial)}
    averages: Tensor = function(padded(x, wide), kernel, strides, 0, ceil)
    if counted:
        return averages
    share: Tensor = function(padded(torch.ones_like(x[:1, :1]), wide), kernel, strides, 0, ceil)
    return averages / share


def _evened(x: Tensor, pads: list[Size], kernel: list[int], value: float) -> tuple[Tensor, list[Size]]:
    """Input, padded first where torch cannot pad so (sides that differ, wide ones), and the remaining padding."""
    spatial = len(kernel)
    if pads[:spatial] == pads[spatial:] and all(2 * p <= k for p, k in zip(pads, kernel, strict=False)):
        return x, pads[:spatial]
    return padded(x, {i + 2: (pads[i], pads[i + spatial]) for i in range(spatial)}, value=value), [0] * spatial


@translates("GlobalAveragePool")
def global_average(call: NodeCall) -> Tensor:
    x = call.tensor(0)
    return x.mean(list(range(2, x.dim())), keepdim=True)


@translates("GlobalMaxPool")
def global_maximum(call: NodeCall) -> Tensor:
    x = call.tensor(0)
    return x.amax(list(range(2, x.dim())), keepdim=True)


@translates("Upsample")
def upsample(call: NodeCall) -> Tensor:
    scales = call.numbers(1).tolist() if call.has(1) else call.attribute("scales")
    x = call.tensor(0)
    return _interpolated(call, x, [_scaled(n, s) for n, s in zip(x.shape, scales, strict=True)], "asymmetric")


@translates("Resize")
def resize(call: NodeCall) -> Tensor:
    x = call.tensor(0)
    call.require(call.attribute("antialias", 0) == 0, "antialiasing")
    call.require(call.attribute("axes") is None, "the attribute axes")
    position = call.attribute("coordinate_transformation_mode", "half_pixel")
    has_sizes = call.has(3) and call.numbers(3).size
    if has_sizes:
        sizes = call.sizes(3)
    else:
        sizes = [_scaled(n, s) for n, s in zip(x.shape, call.numbers(2).reshape(-1), strict=True)]
    return _interpolated(call, x, sizes, position)


def _scaled(size: Size, scale: Any) -> Size:
    factor = scale if is_symbolic(scale) else float(scale)
    if not is_symbolic(factor) and factor == int(factor):
        return size * int(factor)
    return math.floor(size * factor)


def _interpolated(call: NodeCall, x: Tensor, sizes: list[Size], position: str) -> Tensor:
    """Image of other spatial sizes, where torch has the same positions of pixels."""
    mode = call.attribute("mode", "nearest")
    name = _MODES.get((mode, x.dim() - 2))
    if name is None:
        raise UnsupportedError(f"mode {mode} in {x.dim() - 2} dimensions")
    target = sizes[2:]
    if mode == "nearest":
        rounding = call.attribute("nearest_mode", "round_prefer_floor")
        plain = position == "asymmetric" and (rounding == "floor" or call.opset < 11)
        exact = position in ("half_pixel", "pytorch_half_pixel") and rounding in (
            "round_prefer_floor",
            "round_prefer_ceil",
        )
        whole = position == "asymmetric" and _is_multiple(x.shape[2:], target)
        half = position == "half_pixel" and _is_multiple(x.shape[2:], target)
        call.require(plain or exact or whole or half, f"positions {position} rounded by {rounding}")
        return F.interpolate(x, target, mode="nearest" if plain or whole or half else "nearest-exact")
    call.require(position in ("half_pixel", "pytorch_half_pixel", "align_corners"), f"positions {position}")
    cubic = call.attribute("cubic_coeff_a", -0.75)
    call.require(mode != "cubic" or abs(cubic + 0.75) < 1e-6, f"the cubic coefficient {cubic}")
    return F.interpolate(x, target, mode=name, align_corners=position == "align_corners")


def _is_multiple(old: Any, new: list[Size]) -> bool:
    """Whether all sizes are whole multiples, so that every pixel is repeated."""
    return all(not is_symbolic(a) and not is_symbolic(b) and b % a == 0 for a, b in zip(old, new, strict=True))
