"""Normalizations and softmax."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graphprune.frontends.onnx_import.onnx_values import NodeCall, product
from graphprune.frontends.onnx_import.operators import MICROSOFT, translates


@translates("BatchNormalization")
def batch_norm(call: NodeCall) -> Tensor:
    call.require(not call.attribute("training_mode", 0), "training mode; export the model for inference")
    x, scale, bias, mean, variance = call.tensors()[:5]
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, call.attribute("epsilon", 1e-5))


@translates("InstanceNormalization")
def instance_norm(call: NodeCall) -> Tensor:
    x, scale, bias = call.tensors()
    return F.instance_norm(x, weight=scale, bias=bias, eps=call.attribute("epsilon", 1e-5))


@translates("LayerNormalization")
def layer_norm(call: NodeCall) -> Tensor:
    _require_single_output(call)
    x, scale, bias = call.tensor(0), call.tensor(1), call.optional(2)
    sizes = x.shape[call.attribute("axis", -1) :]
    return F.layer_norm(x, list(sizes), scale, bias, call.attribute("epsilon", 1e-5))


@translates("RMSNormalization", "SimplifiedLayerNormalization")
@translates("SimplifiedLayerNormalization", domain=MICROSOFT)
def rms_norm(call: NodeCall) -> Tensor:
    _require_single_output(call)
    x, scale = call.tensor(0), call.tensor(1)
    return F.rms_norm(x, list(x.shape[call.attribute("axis", -1) :]), scale, call.attribute("epsilon", 1e-5))


def _require_single_output(call: NodeCall) -> None:
    others = [value for value in call.node.outputs[1:] if value.uses() or value.is_graph_output()]
    call.require(not others, "its statistics are used as outputs")


@translates("GroupNormalization")
def group_norm(call: NodeCall) -> Tensor:
    x, scale, bias = call.tensors()
    groups = call.attribute("num_groups")
    if call.opset < 21:  # a number for each group
        each = x.shape[1] // groups
        scale, bias = (v.unsqueeze(1).expand(groups, each).reshape(-1) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, call.attribute("epsilon", 1e-5))


@translates("LRN")
def local_response(call: NodeCall) -> Tensor:
    alpha, beta, bias = (call.attribute(n, d) for n, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    return F.local_response_norm(call.tensor(0), call.attribute("size"), alpha, beta, bias)


@translates("LpNormalization")
def lp_norm(call: NodeCall) -> Any:
    x, axis, order = call.tensor(0), call.attribute("axis", -1), call.attribute("p", 2)
    return x / torch.linalg.vector_norm(x, order, axis, keepdim=True)


@translates("MeanVarianceNormalization")
def mean_variance(call: NodeCall) -> Tensor:
    x, axes = call.tensor(0), call.attribute("axes") or [0, 2, 3]
    centered = x - x.mean(axes, keepdim=True)
    return centered / (torch.sqrt((centered * centered).mean(axes, keepdim=True)) + 1e-9)


def _over_rows(call: NodeCall, function: Any) -> Tensor:
    """Softmax along an axis; before opset 13 over all dimensions from the axis on."""
    x = call.tensor(0)
    axis = call.attribute("axis", 1 if call.opset < 13 else -1) % x.dim()
    if call.opset >= 13 or axis == x.dim() - 1:
        result: Tensor = function(x, axis)
        return result
    flat = x.reshape(product(x.shape[:axis]), product(x.shape[axis:]))
    flattened: Tensor = function(flat, 1)
    return flattened.reshape(x.shape)


@translates("Softmax")
def softmax(call: NodeCall) -> Tensor:
    return _over_rows(call, torch.softmax)


@translates("LogSoftmax")
def log_softmax(call: NodeCall) -> Tensor:
    return _over_rows(call, torch.log_softmax)


@translates("Hardmax")
def hardmax(call: NodeCall) -> Tensor:
    return _over_rows(call, lambda x, axis: torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0))
