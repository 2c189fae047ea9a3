"""A decoder as llama.cpp wants it: its own names of weights and sizes, and the order in which it turns heads."""

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
class Described:
    """What a file must hold: plain values by key, and weights in float32 by name."""

    architecture: str
    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    context: int
    bound: float  # how far llama.cpp may be from the model, in float32
    notes: list[str] = field(default_factory=list)


def describe(model: Any) -> Described:
    """The sizes and weights of a model of transformers under the names of llama.cpp.

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
    return Described(kind.name, _fields(model.config, kind, sizes, context), tensors, context, kind.bound, notes)


def _checked_widths(model: Any) -> Widths:
    inner: Any = getattr(model, "model", None)
    if not hasattr(inner, "layers") or not all(hasattr(layer, "self_attn") for layer in inner.layers):
        raise ExportError(
            f"{type(model).__name__} is no decoder of layers with self_attn and mlp; target gguf takes no other. "
            "Use target onnx"
        )
    kind_of_model = model.config.model_type
    for layer in inner.layers:
        if not hasattr(layer.self_attn, "q_proj") or not hasattr(getattr(layer, "mlp", None), "up_proj"):
            raise ExportError(
                f"the layers of this {kind_of_model} model have no q_proj or no up_proj, by which llama.cpp knows "
                "them; use target onnx"
            )
    return widths(model)


def _tensors(model: Any, kind: Kind, sizes: Widths) -> dict[str, Tensor]:
    """Every weight once: a tied head is left out, and llama.cpp takes the table of embeddings for it."""
    names = gguf.get_tensor_name_map(_ARCHITECTURES[kind.name], len(sizes.heads))
    tensors = {}
    for name, parameter in model.named_parameters():
        found = names.get_type_and_name(name, (".weight", ".bias"))
        if found is None:
            raise ExportError(f"llama.cpp has no place for {name} in a {kind.name} model; use target onnx")
        role, stored = found
        tensors[stored] = _stored(parameter.detach().float(), role, kind, sizes)
    return tensors


def _stored(tensor: Tensor, role: Any, kind: Kind, sizes: Widths) -> Tensor:
    if kind.paired and role in (gguf.MODEL_TENSOR.ATTN_Q, gguf.MODEL_TENSOR.ATTN_K):
        return _side_by_side(tensor, sizes.head)
    if kind.norm_offset and role.name.endswith("_NORM"):
        return tensor + kind.norm_offset
    return tensor


def _side_by_side(tensor: Tensor, head: int) -> Tensor:
    """The rows of each head so that row i of its first half is followed by row i of its second."""
    halves = tensor.reshape(-1, 2, head // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape).contiguous()


def _fields(config: Any, kind: Kind, sizes: Widths, context: int) -> dict[str, Any]:
    own = kind.own_widths
    values = {
        _LLM.CONTEXT_LENGTH: context,
        _LLM.EMBEDDING_LENGTH: sizes.hidden,
        _LLM.BLOCK_COUNT: len(sizes.heads),
        _LLM.VOCAB_SIZE: int(config.vocab_size),
        _LLM.FEED_FORWARD_LENGTH: sizes.feed_forward if own else sizes.feed_forward[0],
        _ATTENTION.HEAD_COUNT: sizes.heads if own else sizes.heads[0],
        _ATTENTION.HEAD_COUNT_KV: sizes.kv_heads if own else sizes.kv_heads[0],
        _ATTENTION.KEY_LENGTH: sizes.head,
        _ATTENTION.VALUE_LENGTH: sizes.head,
        _ATTENTION.LAYERNORM_RMS_EPS: float(config.rms_norm_eps),
        gguf.Keys.Rope.DIMENSION_COUNT: sizes.head,
        gguf.Keys.Rope.FREQ_BASE: float(config.rope_parameters["rope_theta"]),
    }
    return {key.format(arch=kind.name): value for key, value in values.items()}


def _context(config: Any) -> tuple[int, list[str]]:
    """How long a text may be: no longer than a sliding window, within which attention is full."""
    longest = int(config.max_position_embeddings)
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else True
    window = getattr(config, "sliding_window", None) if slides else None
    if window is None or window >= longest:
        return longest, []
    return int(window), [f"the context is {window} tokens, the sliding window, not {longest}: llama.cpp has none here"]


def _frequency_factors(model: Any, sizes: Widths) -> Tensor | None:
    """By how much each rotary frequency is divided; None if none is.

    Raises:
        ExportError: if they are not all of a head's, or change with the length of the text.
    """
    rope, config = model.model.rotary_emb, model.config
    used = str(config.rope_parameters.get("rope_type", "default"))
    scales = {float(layer.self_attn.scaling) * sizes.head**0.5 for layer in model.model.layers}
    if used not in _FIXED_POSITIONS or float(rope.attention_scaling) != 1.0 or 2 * len(rope.inv_freq) != sizes.head:
        raise ExportError(
            f"rotary positions of type {used!r} over {2 * len(rope.inv_freq)} of {sizes.head} numbers cannot be told "
            f"llama.cpp exactly; target gguf takes {', '.join(_FIXED_POSITIONS)} over all. Use target onnx"
        )
    if any(abs(scale - 1) > 1e-5 for scale in scales):
        raise ExportError("attention is not scaled by the root of the size of a head, as in llama.cpp; use target onnx")
    steps = torch.arange(0, sizes.head, 2, dtype=torch.float32) / sizes.head
    factors = 1.0 / (float(config.rope_parameters["rope_theta"]) ** steps) / rope.inv_freq.float()
    return None if torch.allclose(factors, torch.ones_like(factors), rtol=1e-5) else factors
