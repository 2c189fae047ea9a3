"""Architectures of llama.cpp, and the selection of the one that computes the same as a transformers model."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from graphprune.errors import ExportError

FULL, WINDOWED = "full_attention", "sliding_attention"  # kinds of layers in a config of transformers
_ATTENTION = frozenset({"attn_q", "attn_k", "attn_v"})
_ALL = _ATTENTION | {"attn_output", "ffn_gate", "ffn_up", "ffn_down"}


@dataclass(frozen=True)
class Kind:
    """An architecture of llama.cpp and its features."""

    name: str
    biases: frozenset[str]
    interleaved: bool = False  # rotary pairs are adjacent, not half a head apart
    per_layer_widths: bool = False  # layers may differ in width
    scaled_positions: bool = False  # the file may have a divisor for each rotary frequency
    full_queries: bool = False  # all query heads together must have the hidden size
    norm_offset: float = 0.0  # added to the stored weights of norms
    tied: bool = False  # the head always shares the embedding matrix
    full_attention_every: int = 0  # the other layers attend to a window, with rotary positions of base `window_base`
    window_base: float = 10_000.0
    activation: tuple[str, ...] = ("silu", "swish")
    tabulated: bool = False  # its activation comes from a table in half precision


@dataclass(frozen=True)
class Widths:
    """Widths of a decoder, by layer where they may differ."""

    hidden: int
    head: int
    heads: list[int]
    kv_heads: list[int]
    feed_forward: list[int]


_LLAMA = Kind("llama", _ALL, interleaved=True, scaled_positions=True)
_DECI = Kind("deci", _ALL, interleaved=True, scaled_positions=True, per_layer_widths=True)
_GEMMA = Kind(
    "gemma", frozenset(), norm_offset=1.0, tied=True, activation=("gelu_pytorch_tanh",), tabulated=True
)  # fmt: skip

_GEMMA3 = replace(_GEMMA, name="gemma3", full_attention_every=6)

#: Candidate architectures by model type of transformers, in order of preference.
KINDS: dict[str, tuple[Kind, ...]] = {
    "llama": (_LLAMA, _DECI),
    "mistral": (_LLAMA, _DECI),
    "qwen2": (Kind("qwen2", _ATTENTION, full_queries=True), _DECI),
    "qwen3": (Kind("qwen3", _ATTENTION),),
    "gemma": (_GEMMA,),
    "gemma3_text": (_GEMMA3,),
}


def widths(model: Any) -> Widths:
    """Widths of the weights of a decoder.

    Raises:
        ExportError: if its layers differ in head dim.
    """
    layers: list[Any] = list(model.model.layers)
    sizes = {int(layer.self_attn.head_dim) for layer in layers}
    if len(sizes) != 1:
        raise ExportError(f"the layers have head dims {sorted(sizes)}, llama.cpp supports only one; use target onnx")
    head = sizes.pop()
    return Widths(
        int(model.config.hidden_size), head,
        [len(layer.self_attn.q_proj.weight) // head for layer in layers],
        [len(layer.self_attn.k_proj.weight) // head for layer in layers],
        [len(layer.mlp.up_proj.weight) for layer in layers],
    )  # fmt: skip


def kind_of(model: Any, sizes: Widths, scaled_positions: bool) -> Kind:
    """The first architecture that computes the same as the model.

    Raises:
        ExportError: if there is none; names the features that each lacks.
    """
    name = model.config.model_type
    if name not in KINDS:
        raise ExportError(
            f"no architecture of llama.cpp is known to compute a {name} model exactly; target gguf supports "
            f"{', '.join(KINDS)}. Use target onnx"
        )
    reasons = {kind: list(_missing_features(kind, model, sizes, scaled_positions)) for kind in KINDS[name]}
    for kind, missing in reasons.items():
        if not missing:
            return kind
    details = "; ".join(f"its {kind.name} has no {' and no '.join(missing)}" for kind, missing in reasons.items())
    raise ExportError(f"llama.cpp cannot compute this {name} model: {details}. Use target onnx")


def _missing_features(kind: Kind, model: Any, sizes: Widths, scaled_positions: bool) -> Iterator[str]:
    uneven = any(len(set(each)) > 1 for each in (sizes.heads, sizes.kv_heads, sizes.feed_forward))
    if uneven and not kind.per_layer_widths:
        yield "layers of different widths (prune with --destination stock)"
    if scaled_positions and not kind.scaled_positions:
        yield "scaled rotary positions"
    if kind.full_queries and any(count * sizes.head != sizes.hidden for count in sizes.heads):
        yield "query heads of another total width than the hidden size"
    if kind.tied and not model.config.tie_word_embeddings:
        yield "untied head"
    if getattr(model.config, "use_bidirectional_attention", False):
        yield "attention to later tokens"
    if kind.full_attention_every and not _alternates(kind, model.config):
        yield (
            f"layers but those of full attention at every {kind.full_attention_every}th place and of a window with "
            f"rotary base {kind.window_base:g} at the others"
        )
    if any(getattr(model.config, f"{name}_logit_softcapping", None) for name in ("attn", "final")):
        yield "soft cap of logits"
    if (activation := _activation(model.config)) not in kind.activation:
        yield f"activation {activation!r}"
    if biased := sorted(_biased(model) - kind.biases):
        yield f"bias in {', '.join(biased)}"


def _alternates(kind: Kind, config: Any) -> bool:
    every, base = kind.full_attention_every, config.rope_parameters.get(WINDOWED, {}).get("rope_theta")
    types = [FULL if i % every == every - 1 else WINDOWED for i in range(len(config.layer_types))]
    return list(config.layer_types) == types and base == kind.window_base


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


_BIAS_NAMES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
    "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip


def _biased(model: nn.Module) -> set[str]:
    names = {name.split(".")[-2] for name, _ in model.named_parameters() if name.endswith(".bias")}
    return {_BIAS_NAMES.get(name, name) for name in names}
