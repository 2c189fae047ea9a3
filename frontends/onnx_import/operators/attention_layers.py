"""Attention and rotary embeddings, of the standard and of ONNX Runtime."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graphprune.frontends.onnx_import.onnx_values import NodeCall, Size
from graphprune.frontends.onnx_import.operators import MICROSOFT, translates


def heads(x: Tensor, count: int) -> Tensor:
    """``(batch, sequence, heads * size) -> (batch, heads, sequence, size)``; four dimensions are unchanged."""
    return x if x.dim() == 4 else x.reshape(x.shape[0], x.shape[1], count, x.shape[2] // count).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """``(batch, heads, sequence, size) -> (batch, sequence, heads * size)``"""
    y = x.transpose(1, 2)
    return y.reshape(y.shape[0], y.shape[1], y.shape[2] * y.shape[3])


def repeated(x: Tensor, times: int) -> Tensor:
    """Keys or values, each head as often as queries share it."""
    if times == 1:
        return x
    batch, count, length, size = x.shape
    wide = x.unsqueeze(2).expand(batch, count, times, length, size)
    return wide.reshape(batch, count * times, length, size)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None, causal: bool = False) -> Tensor:
    """Attention of heads; `causal` aligns the last query with the last key."""
    if causal:
        mask = causal_mask(q.shape[2], k.shape[2])
        bias = torch.where(mask, 0.0 if bias is None else bias, -math.inf)
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    return F.scaled_dot_product_attention(q, k, v, bias, scale=scale)


def causal_mask(queries: Size, keys: Size) -> Tensor:
    """Mask of the keys that each query sees, shape ``(queries, keys)``."""
    seen: Tensor = torch.arange(keys) <= torch.arange(queries).unsqueeze(1) + (keys - queries)
    return seen


def padding_bias(mask: Tensor, dtype: torch.dtype, value: float = torch.finfo(torch.float32).min) -> Tensor:
    """Bias that hides the keys at zeros of a mask of shape ``(batch, keys)``."""
    return torch.where(mask[:, None, None, :] != 0, 0.0, value).to(dtype)


@translates("Attention")
def attention(call: NodeCall) -> Any:
    """The standard operator of opset 23."""
    call.require(not call.attribute("softcap", 0.0), "softcap")
    call.require(not call.has(6), "lengths of the cache")
    flat = call.tensor(0).dim() == 3
    q_heads, kv_heads = call.attribute("q_num_heads", 0), call.attribute("kv_num_heads", 0)
    q, k, v = heads(call.tensor(0), q_heads), heads(call.tensor(1), kv_heads), heads(call.tensor(2), kv_heads)
    if call.has(4):
        k, v = torch.cat([call.tensor(4), k], 2), torch.cat([call.tensor(5), v], 2)
    mask = call.optional(3)
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, -math.inf).to(q.dtype)
    times = q.shape[1] // k.shape[1]
    if call.attribute("is_causal", 0) and not call.has(4) and q.shape[2] is not k.shape[2]:
        lower = torch.arange(k.shape[2]) <= torch.arange(q.shape[2]).unsqueeze(1)
        mask = torch.where(lower, 0.0 if mask is None else mask, -math.inf)
        result = attend(q, repeated(k, times), repeated(v, times), mask, call.attribute("scale"))
    else:
        causal = bool(call.attribute("is_causal", 0))
        result = attend(q, repeated(k, times), repeated(v, times), mask, call.attribute("scale"), causal)
    return (joined(result) if flat else result), k, v, None


@translates("RotaryEmbedding")
def rotary(call: NodeCall) -> Tensor:
    """The standard operator of opset 23."""
    x, cos, sin = call.tensor(0), call.tensor(1), call.tensor(2)
    cos, sin = (cos[call.tensor(3)], sin[call.tensor(3)]) if call.has(3) else (cos, sin)
    return _rotated(call, x, cos, sin)


@translates("RotaryEmbedding", domain=MICROSOFT)
def microsoft_rotary(call: NodeCall) -> Tensor:
    x, positions = call.tensor(0), call.tensor(1)
    length = x.shape[1] if x.dim() == 3 else x.shape[2]
    if positions.dim() == 1:
        positions = positions[:1].unsqueeze(1) + torch.arange(length)
    return _rotated(call, x, call.tensor(2)[positions], call.tensor(3)[positions])


def _rotated(call: NodeCall, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    count = call.attribute("num_heads", 0)
    call.require(x.dim() == 4 or count > 0, "no number of heads")
    result = rotate(
        heads(x, count), cos, sin, bool(call.attribute("interleaved", 0)), call.attribute("rotary_embedding_dim", 0)
    )
    return joined(result) if x.dim() == 3 else result


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, size: int = 0) -> Tensor:
    """Heads rotated by tables of shape ``(batch, sequence, size / 2)``."""
    part, rest = (x[..., :size], x[..., size:]) if size else (x, None)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if interleaved:
        a, b = part[..., ::2], part[..., 1::2]
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        a, b = part.chunk(2, -1)
        turned = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    return turned if rest is None else torch.cat([turned, rest], -1)


@translates("Attention", domain=MICROSOFT)
def microsoft_attention(call: NodeCall) -> Any:
    """Attention with its projection of queries, keys and values in one matrix."""
    call.require(not call.has(4) and not call.has(6), "a cache")
    x, count = call.tensor(0), call.attribute("num_heads")
    projected = torch.matmul(x, call.tensor(1))
    projected = projected + call.tensor(2) if call.has(2) else projected
    sizes = call.attribute("qkv_hidden_sizes") or [projected.shape[-1] // 3] * 3
    q, k, v = (heads(part, count) for part in torch.split(projected, sizes, -1))
    bias = _mask_bias(call, 3, q)
    bias = bias if not call.has(5) else call.tensor(5) if bias is None else bias + call.tensor(5)
    scale = call.attribute("scale", 0.0) or None
    return joined(attend(q, k, v, bias, scale, bool(call.attribute("unidirectional", 0)))), None


def _mask_bias(call: NodeCall, index: int, q: Tensor) -> Tensor | None:
    """Bias of a mask of keys, ``(batch, keys)`` or ``(batch, queries, keys)``, or of their number for each row."""
    if not call.has(index):
        return None
    mask, value = call.tensor(index), call.attribute("mask_filter_value", -10000.0)
    if mask.dim() == 1:
        mask = (torch.arange(q.shape[2]) < mask.unsqueeze(1)).to(torch.int64)
    if mask.dim() == 2:
        return padding_bias(mask, q.dtype, value)
    wide = mask.unsqueeze(1) if mask.dim() == 3 else mask
    return torch.where(wide != 0, 0.0, value).to(q.dtype)


@translates("MultiHeadAttention", domain=MICROSOFT)
def multi_head(call: NodeCall) -> Any:
    call.require(call.has(1) and call.has(2), "packed keys and values")
    count = call.attribute("num_heads")
    parts = [call.tensor(0), call.tensor(1), call.tensor(2)]
    if call.has(3):
        bias, sizes = call.tensor(3), [parts[0].shape[-1], parts[0].shape[-1], parts[2].shape[-1]]
        parts = [x + b if x.dim() == 3 else x for x, b in zip(parts, torch.split(bias, sizes), strict=True)]
    q, k, v = (heads(part, count) for part in parts)
    if call.has(6):
        k, v = torch.cat([call.tensor(6), k], 2), torch.cat([call.tensor(7), v], 2)
    hidden = _mask_bias(call, 4, k)
    added = call.optional(5)
    hidden = hidden if added is None else added if hidden is None else hidden + added
    scale = call.attribute("scale", 0.0) or None
    return joined(attend(q, k, v, hidden, scale, bool(call.attribute("unidirectional", 0)))), k, v


@translates("GroupQueryAttention", domain=MICROSOFT)
def grouped(call: NodeCall) -> Any:
    """Causal attention with a cache that grows; queries share keys and values."""
    local = call.attribute("local_window_size", -1)
    call.require(local == -1 and not call.attribute("softcap", 0.0), "a local window or softcap")
    q_heads, kv_heads = call.attribute("num_heads"), call.attribute("kv_num_heads")
    x = call.tensor(0)
    if call.has(1):
        k, v = call.tensor(1), call.tensor(2)
    else:
        size = x.shape[-1] // (q_heads + 2 * kv_heads)
        x, k, v = torch.split(x, [q_heads * size, kv_heads * size, kv_heads * size], -1)
    q, k, v = heads(x, q_heads), heads(k, kv_heads), heads(v, kv_heads)
    lengths = call.tensor(5).reshape(-1, 1).long()  # of each row, less one
    past = call.tensor(3).shape[2] if call.has(3) else 0
    if call.attribute("do_rotary", 0):
        q, k = _rotated_pair(call, q, k, lengths)
    if call.has(3):
        k, v = torch.cat([call.tensor(3), k], 2), torch.cat([call.tensor(4), v], 2)
    times = q_heads // kv_heads
    seen = torch.arange(k.shape[2]) <= torch.arange(q.shape[2]).unsqueeze(1) + past
    bias = torch.where(seen, 0.0, -math.inf).to(q.dtype)
    scale = call.attribute("scale", 0.0) or None
    return joined(attend(q, repeated(k, times), repeated(v, times), bias, scale)), k, v


def _rotated_pair(call: NodeCall, q: Tensor, k: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    steps = torch.arange(q.shape[2])
    positions = call.tensor(9) if call.has(9) else (lengths + 1 - q.shape[2]).clamp(min=0) + steps
    cos, sin = call.tensor(7)[positions], call.tensor(8)[positions]
    interleaved = bool(call.attribute("rotary_interleaved", 0))
    return rotate(q, cos, sin, interleaved), rotate(k, cos, sin, interleaved)
