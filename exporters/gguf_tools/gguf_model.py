"""Decoders in the layout of llama.cpp: names of weights and sizes, and the order of rotary pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import ExportError
from graphprune.exporters.gguf_tools.gguf_kinds import Kind, Widths, kind_of, widths
from graphprune.support.packages import gguf

_FIXED_POSITIONS = ("default", "linear", "llama3")
_ARCHITECTURES = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}
_LLM, _ATTENTION = gguf.Keys.LLM, gguf.Keys.Attention


@dataclass(frozen=True)
class GgufModel:
    """Contents of a GGUF file: plain values by key, and weights in float32 by name."""

    architecture: str
    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    context: int
    bound: float  # tolerated relative error of llama.cpp in float32
    notes: list[str] = field(default_factory=list)


def describe(model: Any) -> GgufModel:
    """Sizes and weights of a transformers model under the names of llama.cpp.

    Raises:
        ExportError: if llama.cpp does not compute the same.
    """
    sizes = _checked_widths(model)
    factors = _frequency_factors(model, sizes)
    kind = kind_of(model, sizes, factors is not None)
    tensors = _tensors(model, kind, sizes)
    if factors is not None:
        tensors[f"{gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS]}.weight"] = factors
    context, notes = _context(model.config)
    return GgufModel(kind.name, _fields(model.config, kind, sizes, context), tensors, context, kind.bound, notes)


def _checked_widths(model: Any) -> Widths:
    inner: Any = getattr(model, "model", None)
    if not hasattr(inner, "layers") or not all(hasattr(layer, "self_attn") for layer in inner.layers):
        raise ExportError(
            f"{type(model).__name__} is not a decoder of layers with self_attn and mlp, which target gguf requires; "
            "use target onnx"
        )
    model_type = model.config.model_type
    for layer in inner.layers:
        if not hasattr(layer.self_attn, "q_proj") or not hasattr(getattr(layer, "mlp", None), "up_proj"):
            raise ExportError(
                f"the layers of this {model_type} model have no q_proj or no up_proj, which target gguf requires; use "
                "target onnx"
            )
    return widths(model)


def _tensors(model: Any, kind: Kind, sizes: Widths) -> dict[str, Tensor]:
    """Every weight once: a tied head is omitted, and llama.cpp uses the embeddings for it."""
    names = gguf.get_tensor_name_map(_ARCHITECTURES[kind.name], len(sizes.heads))
    tensors = {}
    for name, parameter in model.named_parameters():
        entry = names.get_type_and_name(name, (".weight", ".bias"))
        if entry is None:
            raise ExportError(f"llama.cpp has no tensor for {name} in a {kind.name} model; use target onnx")
        role, stored_name = entry
        tensors[stored_name] = _stored(parameter.detach().float(), role, kind, sizes)
    return tensors


def _stored(tensor: Tensor, role: Any, kind: Kind, sizes: Widths) -> Tensor:
    if kind.interleaved and role in (gguf.MODEL_TENSOR.ATTN_Q, gguf.MODEL_TENSOR.ATTN_K):
        return _interleaved(tensor, sizes.head)
    if kind.norm_offset and role.name.endswith("_NORM"):
        return tensor + kind.norm_offset
    return tensor


def _interleaved(tensor: Tensor, head: int) -> Tensor:
    """The rows of each head reordered so that row i of its first half is followed by row i of its second."""
    halves = tensor.reshape(-1, 2, head // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape).contiguous()


def _fields(config: Any, kind: Kind, sizes: Widths, context: int) -> dict[str, Any]:
    per_layer = kind.per_layer_widths
    values = {
        _LLM.CONTEXT_LENGTH: context,
        _LLM.EMBEDDING_LENGTH: sizes.hidden,
        _LLM.BLOCK_COUNT: len(sizes.heads),
        _LLM.VOCAB_SIZE: int(config.vocab_size),
        _LLM.FEED_FORWARD_LENGTH: sizes.feed_forward if per_layer else sizes.feed_forward[0],
        _ATTENTION.HEAD_COUNT: sizes.heads if per_layer else sizes.heads[0],
        _ATTENTION.HEAD_COUNT_KV: sizes.kv_heads if per_layer else sizes.kv_heads[0],
        _ATTENTION.KEY_LENGTH: sizes.head,
        _ATTENTION.VALUE_LENGTH: sizes.head,
        _ATTENTION.LAYERNORM_RMS_EPS: float(config.rms_norm_eps),
        gguf.Keys.Rope.DIMENSION_COUNT: sizes.head,
        gguf.Keys.Rope.FREQ_BASE: float(config.rope_parameters["rope_theta"]),
    }
    return {key.format(arch=kind.name): value for key, value in values.items()}


def _context(config: Any) -> tuple[int, list[str]]:
    """The context length, at most that of a sliding window, within which attention is full; and notes."""
    longest = int(config.max_position_embeddings)
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else True
    window = getattr(config, "sliding_window", None) if slides else None
    if window is None or window >= longest:
        return longest, []
    return int(window), [f"the context is {window} tokens, the sliding window, not {longest}: llama.cpp has none here"]


def _frequency_factors(model: Any, sizes: Widths) -> Tensor | None:
    """Divisors of the rotary frequencies, shape (head dim / 2,); None if all are 1.

    Raises:
        ExportError: if only part of a head is rotated, or frequencies depend on the length of the text.
    """
    rope, config = model.model.rotary_emb, model.config
    rope_type = str(config.rope_parameters.get("rope_type", "default"))
    scales = {float(layer.self_attn.scaling) * sizes.head**0.5 for layer in model.model.layers}
    rotated = 2 * len(rope.inv_freq)
    if rope_type not in _FIXED_POSITIONS or float(rope.attention_scaling) != 1.0 or rotated != sizes.head:
        raise ExportError(
            f"rotary positions of type {rope_type!r} over {rotated} of {sizes.head} dimensions cannot "
            f"be expressed exactly in llama.cpp; target gguf supports {', '.join(_FIXED_POSITIONS)} over all of them. "
            "Use target onnx"
        )
    if any(abs(scale - 1) > 1e-5 for scale in scales):
        raise ExportError("attention is not scaled by 1 / sqrt(head dim), as in llama.cpp; use target onnx")
    steps = torch.arange(0, sizes.head, 2, dtype=torch.float32) / sizes.head
    factors = 1.0 / (float(config.rope_parameters["rope_theta"]) ** steps) / rope.inv_freq.float()
    return None if torch.allclose(factors, torch.ones_like(factors), rtol=1e-5) else factors
