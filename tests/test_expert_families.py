"""Mixtures of experts of several families: experts, their neurons, shared experts and heads are cut and saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import graphprune as gp
from graphprune.axes.groups import Dependencies, Group
from graphprune.errors import PlanError
from graphprune.passes.analysis.analyze import Analyze
from graphprune.planning.facts import Eligible
from graphprune.planning.index_scores import rows_of
from graphprune.planning.plan import make

BASE = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_experts_per_tok": 2,
    "intermediate_size": 32, "tie_word_embeddings": False,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 8, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}  # fmt: skip
GROUPS = {"n_routed_experts": 16, "n_group": 4, "topk_group": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 8}),
    "qwen3": ("Qwen3Moe", {"num_experts": 8, "moe_intermediate_size": 16, "head_dim": 8, "norm_topk_prob": True}),
    "qwen2": ("Qwen2Moe", {"num_experts": 8, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24}),
    "deepseek-v2": ("DeepseekV2", LATENT),
    "deepseek-v2-groups": ("DeepseekV2", {**LATENT, **GROUPS, "topk_method": "group_limited_greedy"}),
    "deepseek-v3": ("DeepseekV3", {**LATENT, "n_group": 1, "topk_group": 1}),
    "deepseek-v3-groups": ("DeepseekV3", {**LATENT, **GROUPS}),
    "gpt-oss": ("GptOss", {"num_local_experts": 8, "head_dim": 8, "sliding_window": 16, "layer_types":
                           ["sliding_attention", "full_attention"]}),
    "granite": ("GraniteMoe", {"num_local_experts": 8}),
    "olmoe": ("Olmoe", {"num_experts": 8}),
}  # fmt: skip
REMOVED = {
    "experts": (1, 4),
    "experts per group": (1,),
    "neurons": tuple(range(0, 16, 2)),
    "KV heads": (1,),
    "heads": (2, 3),
}


def mixture(family: str, **more: Any) -> nn.Module:
    """A random model with biases of load balancing, if it has any."""
    kind, fields = FAMILIES[family][0], {**FAMILIES[family][1], **more}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**BASE, **fields})
    model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and (isinstance(value, nn.Parameter) or "correction" in name):
            nn.init.normal_(value, 1.0 if "norm" in name else 0.0, 0.2)
    return model


def rows(group: Group, dependencies: Dependencies) -> tuple[tuple[int, ...], ...]:
    """Retained rows; another expert loses other neurons."""
    removed = REMOVED[group.label]
    shifts = [0] if group.label != "neurons" else range(rows_of(group, dependencies))
    return tuple(tuple(i for i in range(group.size) if (i + shift) % 16 not in removed) for shift in shifts)


def narrower(program: gp.Program) -> tuple[gp.Plan, dict[str, int]]:
    """A plan that cuts every kind of group, and how many groups of each it cuts."""
    dependencies = program.fact(Dependencies)
    allowed = {group.name for group in program.fact(Eligible).groups}  # some classes have no other number of heads
    chosen = [g for g in dependencies.groups if g.label in REMOVED and g.least < g.size and g.name in allowed]
    labels = [group.label for group in chosen]
    plan = make(program, dependencies, {group.name: rows(group, dependencies) for group in chosen})
    return plan, {label: labels.count(label) for label in labels}


def logits(model: Any, ids: Tensor, **more: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=ids, **more)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixture_is_cut_as_by_a_router_that_refuses_and_loads_without_graphprune(family: str, tmp_path: Path) -> None:
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    program = gp.trace(mixture(family), (), {"input_ids": ids, "use_cache": False})
    plan, labels = narrower(Analyze("stock", exact_only=False)(program))
    assert labels.keys() >= {"neurons"} and labels.keys() & {"experts", "experts per group"}
    small = gp.apply(program, plan)
    assert gp.verify(program, small, plan).max_error <= 1e-4
    gp.save(small, output=tmp_path / "small", destination="stock")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.float32).train(False)
    assert sum(p.numel() for p in loaded.parameters()) == small.count() < 0.8 * program.count()
    whole = logits(loaded, ids, use_cache=False).logits
    torch.testing.assert_close(whole, logits(small.module(), ids, use_cache=False).logits, rtol=1e-4, atol=1e-4)
    cache = logits(loaded, ids[:, :-1], use_cache=True).past_key_values
    last = logits(loaded, ids[:, -1:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(last[:, 0], whole[:, -1], rtol=1e-4, atol=1e-4)
    if "expert groups" in {group.label for group in program.fact(Dependencies).groups}:
        with pytest.raises(PlanError, match="the router must have 4 groups of experts, each of which can be smaller"):
            gp.plan(program, widths={"expert groups": 3}, destination="stock")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_mixture_is_exported_to_onnx(family: str, tmp_path: Path) -> None:
    """The exporter compares the file with the model; it has no caches of sliding windows."""
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    full = {"layer_types": ["full_attention"] * 2} if "layer_types" in FAMILIES[family][1] else {}
    program = gp.trace(mixture(family, **full), (), {"input_ids": ids, "use_cache": False})
    gp.save(
        gp.apply(program, narrower(Analyze("stock", exact_only=False)(program))[0]),
        output=tmp_path / "small",
        destination="stock",
    )
    gp.export(tmp_path / "small", target="onnx", output=tmp_path / "onnx")
    assert list((tmp_path / "onnx").rglob("*.onnx"))
