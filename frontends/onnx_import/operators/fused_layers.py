"""Fused operators of ONNX Runtime: sums with norms, biases with activations, embeddings."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graphprune.frontends.onnx_import.onnx_values import NodeCall
from graphprune.frontends.onnx_import.operators import MICROSOFT, translates


@translates("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_norm(call: NodeCall) -> Any:
    total = _total(call, 4)
    size = list(total.shape[-1:])
    norm = F.layer_norm(total, size, call.tensor(2), call.optional(3), call.attribute("epsilon", 1e-12))
    return norm, None, None, total


@translates("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_rms_norm(call: NodeCall) -> Any:
    total = _total(call, 3)
    return (
        F.rms_norm(total, list(total.shape[-1:]), call.tensor(2), call.attribute("epsilon", 1e-12)),
        None,
        None,
        total,
    )


def _total(call: NodeCall, bias: int) -> Tensor:
    total = call.tensor(0) + call.tensor(1)
    return total + call.tensor(bias) if call.has(bias) else total


@translates("EmbedLayerNormalization", domain=MICROSOFT)
def embeddings(call: NodeCall) -> Any:
    ids, segments = call.tensor(0), call.optional(1)
    words, positions, kinds = call.tensor(2), call.tensor(3), call.optional(4)
    places = call.tensor(8) if call.has(8) else torch.arange(ids.shape[1]).unsqueeze(0)
    total = F.embedding(ids, words) + F.embedding(places, positions)
    if kinds is not None and segments is not None:
        total = total + F.embedding(segments, kinds)
    size = list(total.shape[-1:])
    norm = F.layer_norm(total, size, call.tensor(5), call.tensor(6), call.attribute("epsilon", 1e-12))
    lengths = call.tensor(7).sum(1, dtype=torch.int32) if call.has(7) else ids.new_zeros(ids.shape[0])
    return norm, lengths, total


@translates("BiasGelu", domain=MICROSOFT)
def bias_gelu(call: NodeCall) -> Tensor:
    return F.gelu(call.tensor(0) + call.tensor(1))


@translates("Gelu", domain=MICROSOFT)
def plain_gelu(call: NodeCall) -> Tensor:
    return F.gelu(call.tensor(0))


@translates("FastGelu", domain=MICROSOFT)
def fast_gelu(call: NodeCall) -> Tensor:
    x = call.tensor(0) + call.tensor(1) if call.has(1) else call.tensor(0)
    return F.gelu(x, approximate="tanh")


@translates("QuickGelu", domain=MICROSOFT)
def quick_gelu(call: NodeCall) -> Tensor:
    x, alpha = call.tensor(0), call.attribute("alpha", 1.702)
    return x * torch.sigmoid(alpha * x)
