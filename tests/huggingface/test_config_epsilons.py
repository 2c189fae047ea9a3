"""Epsilons of norms follow a cut of the units that they average over."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import graphprune as gp
from graphprune.huggingface.config_epsilons import several_epsilons, with_epsilons


def test_a_folder_computes_with_the_epsilon_of_narrower_norms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 24}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    model: Any = LlamaForCausalLM(LlamaConfig(**sizes, **heads, use_cache=False, rms_norm_eps=1e-3)).train(False)
    ids = torch.tensor([[3, 5, 7, 11]])
    program = gp.trace(model, (ids,))
    others = tuple(group.name for group in gp.analyze(program).groups if "embed" not in group.name)
    small = gp.apply(program, gp.plan(program, recipe="magnitude", ratio=0.5, exact_only=False, protect=others))
    gp.save(small, output=tmp_path / "graph", destination="stock")  # reloaded and compared
    assert not small.write_back(model).config_mismatch
    assert model.config.hidden_size == 8 and model.config.rms_norm_eps == 2e-3
    model.save_pretrained(tmp_path / "module")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "module").train(False)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, small.module()(ids).logits)


def test_norms_that_need_several_epsilons_are_named() -> None:
    config = LlamaConfig(rms_norm_eps=1e-4)
    literals = {1e-4: {1e-4, 2e-4}, 0.02: {0.5}}
    assert several_epsilons(config, literals) == ["rms_norm_eps (0.0001 and 0.0002)"]
    new = with_epsilons(config, literals)
    assert (new.rms_norm_eps, new.initializer_range) == (1e-4, 0.02)
