"""Decoders in the layout of llama.cpp: names of weights and sizes, and the order of rotary pairs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import ExportError
from graphprune.exporters.gguf_tools.gguf_kinds import FULL, WINDOWED, Kind, Widths, kind_of, widths
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
    tabulated: bool  # llama.cpp computes its activation by a table in half precision
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
    context, notes = _context(model.config, kind)
    return GgufModel(kind.name, _fields(model.config, kind, sizes, context), tensors, context, kind.tabulated, notes)


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
        gguf.Keys.Rope.FREQ_BASE: float(_positions(config)["rope_theta"]),
    }
    if kind.full_attention_every:
        values |= {
            _ATTENTION.SLIDING_WINDOW: int(config.sliding_window),
            gguf.Keys.Rope.FREQ_BASE_SWA: kind.window_base,
        }
    return {key.format(arch=kind.name): value for key, value in values.items()}


def _positions(config: Any) -> Mapping[str, Any]:
    """Parameters of the rotary positions, of layers with full attention where there are others."""
    parameters: Mapping[str, Any] = config.rope_parameters.get(FULL, config.rope_parameters)
    return parameters


def _context(config: Any, kind: Kind) -> tuple[int, list[str]]:
    """The context length, at most that of a sliding window that llama.cpp does not have; and notes."""
    longest = int(config.max_position_embeddings)
    if kind.full_attention_every:
        return longest, []
    kinds = getattr(config, "layer_types", None)
    slides = WINDOWED in kinds if kinds else True
    window = getattr(config, "sliding_window", None) if slides else None
    if window is None or window >= longest:
        return longest, []
    return int(window), [f"the context is {window} tokens, the sliding window, not {longest}: llama.cpp has none here"]


def _frequency_factors(model: Any, sizes: Widths) -> Tensor | None:
    """Divisors of the rotary frequencies, shape (head dim / 2,); None if all are 1.

    Raises:
        ExportError: if only part of a head is rotated, frequencies depend on the length of the text, or those of a
            window are scaled.
    """
    scales = {float(layer.self_attn.scaling) * sizes.head**0.5 for layer in model.model.layers}
    if any(abs(scale - 1) > 1e-5 for scale in scales):
        raise ExportError("attention is not scaled by 1 / sqrt(head dim), as in llama.cpp; use target onnx")
    factors = {
        kind: _factors(parameters, frequencies, scale, sizes.head)
        for kind, parameters, frequencies, scale in _rotaries(model)
    }
    if factors.pop(WINDOWED, None) is not None:
        raise ExportError("rotary positions of sliding windows are scaled, unlike in llama.cpp; use target onnx")
    return factors.popitem()[1]


def _rotaries(model: Any) -> Iterator[tuple[str, Mapping[str, Any], Tensor, float]]:
    """Parameters, frequencies and scale of rotary positions, by the kind of layers that have them."""
    rope, parameters = model.model.rotary_emb, model.config.rope_parameters
    if FULL not in parameters:
        yield FULL, parameters, rope.inv_freq, rope.attention_scaling
        return
    for kind in parameters.keys() & set(model.config.layer_types):
        frequencies, scale = (getattr(rope, f"{kind}_{name}") for name in ("inv_freq", "attention_scaling"))
        yield kind, parameters[kind], frequencies, scale


def _factors(parameters: Mapping[str, Any], frequencies: Tensor, scale: float, head: int) -> Tensor | None:
    rope_type, rotated = str(parameters.get("rope_type", "default")), 2 * len(frequencies)
    if rope_type not in _FIXED_POSITIONS or float(scale) != 1.0 or rotated != head:
        raise ExportError(
            f"rotary positions of type {rope_type!r} over {rotated} of {head} dimensions cannot "
            f"be expressed exactly in llama.cpp; target gguf supports {', '.join(_FIXED_POSITIONS)} over all of them. "
            "Use target onnx"
        )
    steps = torch.arange(0, head, 2, dtype=torch.float32) / head
    factors = 1.0 / (float(parameters["rope_theta"]) ** steps) / frequencies.float()
    return None if torch.allclose(factors, torch.ones_like(factors), rtol=1e-5) else factors
