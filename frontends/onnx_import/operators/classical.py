"""Operators of the domain ai.onnx.ml around networks of scikit-learn: selection of features, and their scales."""

import torch
from torch import Tensor

from graphprune.frontends.onnx_import.onnx_values import NodeCall
from graphprune.frontends.onnx_import.operators import translates

CLASSICAL = "ai.onnx.ml"
_ORDERS = {"L1": 1.0, "L2": 2.0}


@translates("ArrayFeatureExtractor", domain=CLASSICAL)
def extracted(call: NodeCall) -> Tensor:
    """Columns of the last dimension; a vector becomes a matrix of one row."""
    x, places = call.tensor(0), call.tensor(1).long().reshape(-1)
    columns = x.index_select(x.dim() - 1, places)
    return columns[None] if x.dim() == 1 else columns


@translates("Scaler", domain=CLASSICAL)
def scaled(call: NodeCall) -> Tensor:
    """Features minus their offsets, times their scales, in 32 bits."""
    x = call.tensor(0).float()
    return (x - torch.tensor(call.attribute("offset", [0.0]))) * torch.tensor(call.attribute("scale", [1.0]))


@translates("Normalizer", domain=CLASSICAL)
def normalized(call: NodeCall) -> Tensor:
    """Rows divided by their norm, in 32 bits; rows of zeros remain zeros."""
    x, kind = call.tensor(0).float(), call.attribute("norm", "MAX")
    size = x.amax(-1, keepdim=True) if kind == "MAX" else torch.linalg.vector_norm(x, _ORDERS[kind], -1, keepdim=True)
    return torch.where(size == 0, x, x / size)
