"""Look-ups, and writes at indices."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graphprune.frontends.onnx_import.onnx_values import FileTensor, NodeCall, is_symbolic, known
from graphprune.frontends.onnx_import.operators import translates


@translates("Gather")
def gather(call: NodeCall) -> Tensor:
    x = call.tensor(0)
    axis = call.attribute("axis", 0) % x.dim()
    indices = known(call.inputs[1])
    if indices is not None and indices.ndim == 0 and not is_symbolic(indices.item()):
        return x.select(axis, int(indices))
    if indices is not None and indices.dtype != object and (indices < 0).any():
        indices = indices % x.shape[axis]
        places = torch.tensor(indices.tolist())
    else:
        places = call.tensor(1)
    if axis == 0 and x.dim() == 2 and isinstance(call.inputs[0], FileTensor):
        return F.embedding(places, x)
    if places.dim() == 1:
        return x.index_select(axis, places)
    return x[(slice(None),) * axis + (places.long(),)]


@translates("GatherElements")
def gather_elements(call: NodeCall) -> Tensor:
    x, indices = call.tensor(0), call.tensor(1).long()
    axis = call.attribute("axis", 0)
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


@translates("GatherND")
def gather_nd(call: NodeCall) -> Tensor:
    call.require(call.attribute("batch_dims", 0) == 0, "batch dimensions")
    return call.tensor(0)[tuple(call.tensor(1).long().unbind(-1))]


@translates("ScatterND")
def scatter_nd(call: NodeCall) -> Tensor:
    x, indices, updates = call.tensors()
    kind = call.attribute("reduction", "none")
    call.require(kind in ("none", "add"), f"the reduction {kind}")
    return torch.index_put(x, tuple(indices.long().unbind(-1)), updates, accumulate=kind == "add")


@translates("ScatterElements", "Scatter")
def scatter(call: NodeCall) -> Tensor:
    x, indices, updates = call.tensors()
    axis, kind = call.attribute("axis", 0), call.attribute("reduction", "none")
    if kind == "none":
        return torch.scatter(x, axis, indices.long(), updates)
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return torch.scatter_reduce(x, axis, indices.long(), updates, names[kind])


@translates("OneHot")
def one_hot(call: NodeCall) -> Tensor:
    indices, depth, values = call.tensor(0), int(call.number(1)), call.tensor(2)
    axis = call.attribute("axis", -1)
    hot = indices.unsqueeze(axis) % depth == torch.arange(depth).view(
        [-1 if i == (axis % (indices.dim() + 1)) else 1 for i in range(indices.dim() + 1)]
    )
    return torch.where(hot, values[1], values[0])


@translates("NonZero")
def nonzero(call: NodeCall) -> Tensor:
    return torch.nonzero(call.tensor(0)).t()


@translates("ReverseSequence")
def reverse_sequence(call: NodeCall) -> Any:
    call.require(False, "sequences whose lengths are inputs")


@translates("GridSample")
def grid_sample(call: NodeCall) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(*[call.attribute("mode", "linear")] * 2)
    padding, corners = call.attribute("padding_mode", "zeros"), bool(call.attribute("align_corners", 0))
    return F.grid_sample(call.tensor(0), call.tensor(1), mode, padding, corners)
