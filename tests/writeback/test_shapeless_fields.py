"""Fields of configurations that happen to equal a width: a cut does not change them."""

import logging
from typing import Any

import pytest
import torch
import transformers

import graphprune as gp
from graphprune.writeback.attribute_slots import Slot
from graphprune.writeback.sizes.shapeless_fields import sets_no_width

WINDOW: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 8, "sliding_window": 4, "use_sliding_window": True, "max_window_layers": 0,
    "use_cache": False,
}  # fmt: skip


def test_a_window_as_long_as_there_are_heads(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model: Any = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**WINDOW))
    model.train(False)
    ids = torch.randint(0, 60, (2, 3))
    program = gp.trace(model, (), {"input_ids": ids})
    small = gp.apply(program, gp.plan(program, widths={"heads": 2}))
    with caplog.at_level(logging.WARNING):
        result = small.write_back(model)
    layer = model.model.layers[0].self_attn
    assert layer.k_proj.out_features == 16 and layer.sliding_window == 4 and model.config.sliding_window == 4
    assert model.config.num_key_value_heads == 2
    assert not any("sliding_window" in text for text in (*result.assumed, *result.undetermined, caplog.text))


def test_widths_and_head_dims_are_none_of_them() -> None:
    model: Any = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**WINDOW))
    layer, plain = model.model.layers[0], torch.nn.Linear(4, 4)
    layer.self_attn.number_of_mine = 4

    def held(owner: torch.nn.Module, name: str) -> Slot:
        return Slot(owner, vars(owner), name, None, getattr(owner, name))

    assert sets_no_width(model, held(layer.self_attn, "sliding_window"), 2)
    assert not sets_no_width(model, held(layer.mlp, "intermediate_size"), 24)
    assert not sets_no_width(model, held(layer.self_attn, "head_dim"), 4)
    assert not sets_no_width(model, held(layer.self_attn, "number_of_mine"), 2)  # of no configuration
    assert not sets_no_width(plain, held(plain, "in_features"), 2)
