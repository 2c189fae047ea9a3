"""What llama.cpp can compute, and which of it a model of transformers is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from graphprune.errors import ExportError
from graphprune.exporters.checks import parity

_ATTENTION = frozenset({"attn_q", "attn_k", "attn_v"})
_ALL = _ATTENTION | {"attn_output", "ffn_gate", "ffn_up", "ffn_down"}


@dataclass(frozen=True)
class Kind:
    """An architecture of llama.cpp, and what sets it apart from the others."""

    name: str
    biases: frozenset[str]
    paired: bool = False  # the numbers that turn together lie side by side, not half a head apart
    own_widths: bool = False  # each layer has widths of its own
    scaled_positions: bool = False  # the file may say by how much each frequency is divided
    square: bool = False  # all queries together are as wide as the model
    norm_offset: float = 0.0  # the weights of norms are stored with so much added
    tied: bool = False  # the head is always the table of embeddings
    activation: tuple[str, ...] = ("silu", "swish")
    bound: float = parity.FLOAT32


@dataclass(frozen=True)
class Widths:
    """The sizes of a decoder, layer by layer where they may differ."""

    hidden: int
    head: int
    heads: list[int]
    kv_heads: list[int]
    feed_forward: list[int]


_LLAMA = Kind("llama", _ALL, paired=True, scaled_positions=True)
_DECI = Kind("deci", _ALL, paired=True, scaled_positions=True, own_widths=True)
_GEMMA = Kind(
    "gemma", frozenset(), norm_offset=1.0, tied=True, activation=("gelu_pytorch_tanh",),
    bound=parity.FLOAT16,  # llama.cpp looks this activation up in a table of half precision
)  # fmt: skip

#: By model type of transformers, the architectures that compute the same where they apply.
KINDS: dict[str, tuple[Kind, ...]] = {
    "llama": (_LLAMA, _DECI),
    "mistral": (_LLAMA, _DECI),
    "qwen2": (Kind("qwen2", _ATTENTION, square=True), _DECI),
    "qwen3": (Kind("qwen3", _ATTENTION),),
    "gemma": (_GEMMA,),
}


def widths(model: Any) -> Widths:
    """The sizes of a decoder's weights.

    Raises:
        ExportError: if its layers have heads of different sizes.
    """
    layers: list[Any] = list(model.model.layers)
    sizes = {int(layer.self_attn.head_dim) for layer in layers}
    if len(sizes) != 1:
        raise ExportError(f"the layers have heads of sizes {sorted(sizes)}; llama.cpp takes one size: use target onnx")
    head = sizes.pop()
    return Widths(
        int(model.config.hidden_size), head,
        [len(layer.self_attn.q_proj.weight) // head for layer in layers],
        [len(layer.self_attn.k_proj.weight) // head for layer in layers],
        [len(layer.mlp.up_proj.weight) for layer in layers],
    )  # fmt: skip


def kind_of(model: Any, sizes: Widths, scaled: bool) -> Kind:
    """The first architecture that computes what the model does; `scaled` tells whether its positions are.

    Raises:
        ExportError: if there is none, with what each of them lacks.
    """
    name = model.config.model_type
    if name not in KINDS:
        raise ExportError(
            f"no architecture of llama.cpp is known to compute a {name} model exactly; target gguf takes "
            f"{', '.join(KINDS)}. Use target onnx"
        )
    reasons = {kind: list(_lacks(kind, model, sizes, scaled)) for kind in KINDS[name]}
    for kind, lacking in reasons.items():
        if not lacking:
            return kind
    told = "; ".join(f"its {kind.name} has no {' and no '.join(lacking)}" for kind, lacking in reasons.items())
    raise ExportError(f"llama.cpp cannot compute this {name} model: {told}. Use target onnx")


def _lacks(kind: Kind, model: Any, sizes: Widths, scaled: bool) -> Iterator[str]:
    uneven = any(len(set(each)) > 1 for each in (sizes.heads, sizes.kv_heads, sizes.feed_forward))
    if uneven and not kind.own_widths:
        yield "layers of different widths (prune with --destination stock)"
    if scaled and not kind.scaled_positions:
        yield "scaled rotary positions"
    if kind.square and any(count * sizes.head != sizes.hidden for count in sizes.heads):
        yield "queries of another width than the model"
    if kind.tied and not model.config.tie_word_embeddings:
        yield "head of its own"
    if getattr(model.config, "use_bidirectional_attention", False):
        yield "attention to what follows"
    if (used := _activation(model.config)) not in kind.activation:
        yield f"activation {used!r}"
    if biased := sorted(_biased(model) - kind.biases):
        yield f"bias in {', '.join(biased)}"


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


_BIASED = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
    "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip


def _biased(model: nn.Module) -> set[str]:
    names = {name.split(".")[-2] for name, _ in model.named_parameters() if name.endswith(".bias")}
    return {_BIASED.get(name, name) for name in names}
