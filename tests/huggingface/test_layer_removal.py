"""Tests of layer removal: names, configurations, and folders that stock transformers loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import graphprune as gp
from graphprune.errors import ExportError, PlanError
from graphprune.execution.output_comparison import compare
from graphprune.exporters.model_folders import folder_writer
from graphprune.huggingface.layer_removal import shorten_config
from graphprune.huggingface.list_entries import renumbered
from graphprune.ir.program import Program
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.depth.drop_blocks import Drop, drop
from graphprune.pipeline import Pipeline
from graphprune.planning.plan import Plan
from graphprune.statistics.collector import token_inputs

Tiny = Callable[..., nn.Module]


def test_names_are_renumbered() -> None:
    removed = ["a.layers.1", "a.layers.3", "b.0"]
    names = ["a.layers.0.w", "a.layers.1.w", "a.layers.2.w", "a.layers.4", "a.layers.10.x.3", "b.1.w", "c.layers.1"]
    assert [renumbered(name, removed) for name in names] == [
        "a.layers.0.w", None, "a.layers.1.w", "a.layers.2", "a.layers.8.x.3", "b.0.w", "c.layers.1",
    ]  # fmt: skip


def test_lists_of_a_configuration_lose_items_of_removed_layers() -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    config = transformers.Qwen2Config(
        vocab_size=60, hidden_size=32, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, layer_types=kinds, use_sliding_window=True, sliding_window=4,
        architectures=["Qwen2ForCausalLM"],
    )  # fmt: skip
    short = shorten_config(config, ["model.layers.1", "model.layers.3"])
    assert short.num_hidden_layers == 2 and short.layer_types == [kinds[0], kinds[2]]
    assert config.num_hidden_layers == 4 and config.layer_types == kinds


def test_a_configuration_with_several_counts_changes_the_right_one() -> None:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16], depths=[3, 3, 2], layer_type="basic",
        architectures=["ResNetForImageClassification"],
    )  # fmt: skip
    assert shorten_config(config, ["resnet.encoder.stages.1.layers.2"]).depths == [3, 2, 2]
    with pytest.raises(
        ExportError,
        match="no field of ResNetConfig builds the other entries of resnet.encoder.stages.2.layers as they are now",
    ):
        shorten_config(config, ["resnet.encoder.stages.2.layers.0"])


MOE: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 16,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "q_lora_rank": 12, "kv_lora_rank": 16, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4, "v_head_dim": 8, "first_k_dense_replace": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "removed", "expected"),
    [
        ({"mlp_only_layers": [0, 3]}, [0, 2], {"mlp_only_layers": [1]}),
        ({"mlp_only_layers": [3]}, [1], {"mlp_only_layers": [2]}),
        ({"decoder_sparse_step": 2}, [0], {"decoder_sparse_step": 1, "mlp_only_layers": [1]}),
    ],
)
def test_exceptions_among_layers_follow(fields: dict[str, Any], removed: list[int], expected: dict[str, Any]) -> None:
    experts: dict[str, Any] = {
        "num_experts": 4,
        "shared_expert_intermediate_size": 16,
        "architectures": ["Qwen2MoeForCausalLM"],
    }
    short = shorten_config(
        transformers.Qwen2MoeConfig(**MOE, **experts, **fields), [f"model.layers.{i}" for i in removed]
    )
    assert short.num_hidden_layers == 4 - len(removed)
    assert {name: getattr(short, name) for name in expected} == expected


@pytest.mark.slow
def test_dense_layers_before_those_with_experts_can_go(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**MOE, **LATENT))
    model.save_pretrained(tmp_path / "model")
    small = drop(gp.load(tmp_path / "model"), ["model.layers.1", "model.layers.2"])
    folder_writer.save(small, tmp_path / "out", destination="stock")
    short: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (short.config.num_hidden_layers, short.config.first_k_dense_replace) == (2, 1)
    ids = torch.randint(3, 60, (2, 7))
    with torch.no_grad():
        expected = small.module()(**token_inputs(small, ids))
        compare(expected.logits, short(input_ids=ids, use_cache=False).logits, "reloaded model and graph")


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    model: Any = tiny("llama", num_hidden_layers=4)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def data(program: Program) -> Calibrate:
    """Calibration on two calls of the program."""
    ids = torch.randint(3, 60, (2, 2, 8), generator=torch.Generator().manual_seed(0))
    return Calibrate(batches=tuple(((), token_inputs(program, part)) for part in ids), moments="none")


def test_stock_transformers_loads_the_remaining_layers(folder: Path, tmp_path: Path) -> None:
    small = drop(gp.load(folder), ["model.layers.0", "model.layers.2"])
    folder_writer.save(small, tmp_path / "out", destination="stock")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers == 2
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]
    ids = torch.randint(3, 60, (2, 7))
    with torch.no_grad():
        expected = small.module()(**token_inputs(small, ids))
        compare(expected.logits, model(input_ids=ids, use_cache=False).logits, "reloaded model and graph")
        assert model.generate(ids, max_new_tokens=3).shape[1] > 7  # with a cache of two layers


def test_widths_are_cut_after_a_drop_for_a_stock_folder(folder: Path, tmp_path: Path) -> None:
    program = gp.load(folder)
    short = Pipeline((gp.Analyze("stock"), data(program), Drop(count=1)))(program)
    steps = gp.Analyze("stock"), gp.Score("magnitude"), gp.Allocate(ratio=0.5), gp.Select(), gp.Rewrite(), gp.Verify()
    small = Pipeline(steps)(short)
    folder_writer.save(small, tmp_path / "out", destination="stock")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.num_hidden_layers == 3 and config.intermediate_size == 20
    small.fact(Plan).save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.blocks == small.fact(Plan).blocks and plan.digest == small.fact(Plan).digest
    again = gp.apply(gp.load(folder), plan)
    assert again.shapes() == small.shapes()
    assert gp.verify(gp.load(folder), again, plan).max_error <= 1e-4


def test_branches_are_for_destination_free_alone(folder: Path) -> None:
    program = gp.load(folder)
    steps = data(program), Drop(count=1, branches=True)
    with pytest.raises(PlanError, match="branches cannot be dropped for destination stock: .* or use destination free"):
        Pipeline((gp.Analyze("stock"), *steps))(program)
    small = Pipeline((gp.Analyze(), *steps))(program)
    assert small.fact(Plan).blocks[0][:-1].endswith(":") and small.source is not None and not small.source.dropped
