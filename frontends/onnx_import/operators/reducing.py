"""Reductions, cumulative sums and selections of the largest entries."""

from typing import Any

import torch
from torch import Tensor

from graphprune.frontends.onnx_import.onnx_values import NodeCall
from graphprune.frontends.onnx_import.operators import TRANSLATIONS, translates

_REDUCTIONS: dict[str, Any] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: torch.sqrt((x * x).sum(axes, keepdim=keep)),
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: torch.log(x.sum(axes, keepdim=keep)),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
}


def _reduction(function: Any) -> Any:
    def translate(call: NodeCall) -> Any:
        axes = call.axes()
        if not axes and call.attribute("noop_with_empty_axes", 0):
            return call.inputs[0]
        x = call.tensor(0)
        axes = [axis % x.dim() for axis in axes] if axes else list(range(x.dim()))
        return function(x, axes, bool(call.attribute("keepdims", 1)))

    return translate


for _name, _function in _REDUCTIONS.items():
    TRANSLATIONS.register(_name)(_reduction(_function))


@translates("ReduceProd")
def reduce_product(call: NodeCall) -> Tensor:
    x, keep = call.tensor(0), bool(call.attribute("keepdims", 1))
    for axis in sorted((axis % x.dim() for axis in call.axes() or range(x.dim())), reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def _position(call: NodeCall, function: Any) -> Tensor:
    call.require(not call.attribute("select_last_index", 0), "the last of equal entries")
    result: Tensor = function(call.tensor(0), call.attribute("axis", 0), bool(call.attribute("keepdims", 1)))
    return result


@translates("ArgMax")
def argmax(call: NodeCall) -> Tensor:
    return _position(call, torch.argmax)


@translates("ArgMin")
def argmin(call: NodeCall) -> Tensor:
    return _position(call, torch.argmin)


@translates("TopK")
def top(call: NodeCall) -> Any:
    count = call.number(1) if call.opset >= 10 else call.attribute("k")
    return tuple(torch.topk(call.tensor(0), count, call.attribute("axis", -1), bool(call.attribute("largest", 1))))


@translates("CumSum")
def cumulative(call: NodeCall) -> Tensor:
    x, axis = call.tensor(0), int(call.number(1))
    backward = bool(call.attribute("reverse", 0))
    x = torch.flip(x, [axis]) if backward else x
    result = torch.cumsum(x, axis, dtype=x.dtype)
    result = result - x if call.attribute("exclusive", 0) else result
    return torch.flip(result, [axis]) if backward else result
