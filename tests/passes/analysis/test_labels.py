"""Labels of groups: what an index is, told by the graph alone."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import graphprune as gp
from tests.conftest import SIZES, TEXT, Inputs, Tiny

ATTENTION = {"heads": 2, "query/key dimensions": 2, "value dimensions": 2}
MOE = {**TEXT, **SIZES, "num_hidden_layers": 1, "num_key_value_heads": 2, "num_experts_per_tok": 2}
DECODER = {"KV heads": 1, "query heads per KV head": 1, "rotary pairs": 1, "value dimensions": 1, "hidden size": 1}


def labels(program: gp.Program) -> dict[str, int]:
    return dict(Counter(group.label for group in gp.analyze(program).groups))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", {**{name: 2 * n for name, n in DECODER.items()}, "hidden size": 1, "rotary pairs": 1, "neurons": 2}),
        ("bert", {**ATTENTION, "hidden size": 1, "neurons": 3}),
        ("gpt2", {**ATTENTION, "hidden size": 1, "neurons": 2}),
        ("vit", {**ATTENTION, "hidden size": 1, "neurons": 2}),
        ("resnet-bottleneck", {"channels": 9}),
    ],
)
def test_labels_of_tiny_models(kind: str, expected: dict[str, int], tiny: Tiny, inputs: Inputs) -> None:
    assert labels(gp.trace(tiny(kind), (), inputs(kind))) == expected


def test_rotary_pairs_and_heads_have_the_right_sizes(tiny: Tiny, inputs: Inputs) -> None:
    found = gp.analyze(gp.trace(tiny("llama", num_hidden_layers=1), (), inputs("llama"))).groups
    assert {group.label: group.size for group in found} == {
        "hidden size": 32, "KV heads": 2, "query heads per KV head": 4, "rotary pairs": 2, "value dimensions": 4,
        "neurons": 40,
    }  # fmt: skip


def decoder(name: str, **fields: Any) -> gp.Program:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**MOE | fields)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    return gp.trace(model, (), {"input_ids": torch.randint(3, 60, (2, 7)), "use_cache": False})


def test_experts_are_chosen_and_their_neurons_are_not() -> None:
    program = decoder("Mixtral", num_local_experts=4)
    assert labels(program) == {**DECODER, "experts": 1, "neurons": 1}
    experts = next(group for group in gp.analyze(program).groups if group.label == "experts")
    assert experts.size == 4


def test_grouped_experts_and_latent_dimensions() -> None:
    program = decoder(
        "DeepseekV3", num_key_value_heads=4, n_routed_experts=6, moe_intermediate_size=24, q_lora_rank=12, n_group=2,
        topk_group=1, first_k_dense_replace=0, kv_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    sizes = {(group.label, group.size) for group in gp.analyze(program).groups}
    assert sizes == {
        ("hidden size", 32), ("latent dimensions", 12), ("latent dimensions", 16), ("heads", 4), ("rotary pairs", 2),
        ("query/key dimensions", 8), ("value dimensions", 8), ("expert groups", 2), ("experts per group", 3),
        ("neurons", 24),
    }  # fmt: skip


class Attention(nn.Module):
    """Attention written out, with two query heads for each head of keys and values, and halves or pairs rotated."""

    def __init__(self, rotate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 24), nn.Linear(6, 12), nn.Linear(6, 8)
        self.out = nn.Linear(16, 5)
        self.rotate = rotate

    def forward(self, x: Tensor) -> Any:
        q, k, v = (layer(x).unflatten(2, (n, -1)).transpose(1, 2) for layer, n in self._layers())
        k, v = (y[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for y in (self.rotate(k), v))
        scores = (self.rotate(q) @ k.transpose(2, 3)).softmax(3)
        return self.out((scores @ v).transpose(1, 2).flatten(2))

    def _layers(self) -> list[tuple[nn.Module, int]]:
        return [(self.q, 4), (self.k, 2), (self.v, 2)]


def halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * 0.6 - second * 0.8, second * 0.6 + first * 0.8], dim=-1)


def neighbors(x: Any) -> Tensor:
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * 0.6 - second * 0.8, second * 0.6 + first * 0.8], dim=-1).flatten(-2)


@pytest.mark.parametrize(
    ("rotate", "label"), [(halves, "rotary pairs"), (neighbors, "rotary pairs"), (torch.clone, "query/key dimensions")]
)
def test_attention_that_is_written_out(rotate: Callable[[Tensor], Tensor], label: str) -> None:
    found = labels(gp.trace(Attention(rotate), (torch.randn(2, 5, 6),)))
    assert found == {"KV heads": 1, "query heads per KV head": 1, label: 1, "value dimensions": 1}


class Stream(nn.Module):
    """An embedding narrower than the stream, and two residual branches."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.widen = nn.Embedding(9, 3), nn.Linear(3, 6)
        self.up, self.down, self.head = nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(6, 4)

    def forward(self, ids: Tensor) -> Any:
        x = self.widen(self.table(ids))
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(x)


def test_streams_embeddings_and_what_the_graph_does_not_tell() -> None:
    ids = torch.randint(0, 9, (2, 5))
    assert labels(gp.trace(Stream(), (ids,))) == {"embedding size": 1, "hidden size": 1, "neurons": 1}
    x = torch.randn(2, 3, 4)
    linear = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    assert labels(gp.trace(linear, (x,))) == {"latent dimensions": 1}
    assert labels(gp.trace(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2)), (x,))) == {"neurons": 1}

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            return (self.scale * x.sum(1, keepdim=True)).sum(1)

    assert labels(gp.trace(Scaled(), (torch.randn(3, 5),))) == {"width": 1}


def test_recurrent_units() -> None:
    class Started(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.out(self.rnn(x)[0])
            return made

    assert labels(gp.trace(Started(), (torch.randn(2, 3, 4),))) == {"recurrent units": 1}
