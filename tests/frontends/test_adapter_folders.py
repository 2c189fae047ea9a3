"""Adapters of folders are added to their models, and what cannot be added is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import graphprune as gp
from graphprune.errors import LoadError
from graphprune.frontends.adapter_folders import merged
from graphprune.huggingface import model_folder

Q, DOWN, HEAD = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "lm_head"
SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", "target_modules": ["q_proj", "down_proj"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, configure: Any) -> Path:
    """Folder of a small decoder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapters") / "base"
    settings = configure("llama", num_hidden_layers=1, tie_word_embeddings=False)
    transformers.LlamaForCausalLM(settings).save_pretrained(folder)
    return folder


def factors(base: Path, *layers: str) -> dict[str, Tensor]:
    """Random factors for some layers, by the names that peft gives them."""
    shapes = {name: t.shape for name, t in load_file(base / "model.safetensors").items()}
    torch.manual_seed(1)
    return {
        f"base_model.model.{layer}.lora_{part}.weight": torch.randn(size)
        for layer in layers
        for part, size in (("A", (2, shapes[f"{layer}.weight"][1])), ("B", (shapes[f"{layer}.weight"][0], 2)))
    }


def adapter(folder: Path, tensors: Mapping[str, Tensor], base: Path | None = None, **settings: Any) -> Path:
    """Folder of an adapter."""
    folder.mkdir(exist_ok=True)
    named = {"base_model_name_or_path": str(base)} if base else {}
    (folder / "adapter_config.json").write_text(json.dumps({**SETTINGS, **named, **settings}), encoding="utf-8")
    save_file(dict(tensors), folder / "adapter_model.safetensors")
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("is_together", [False, True], ids=["apart", "with the model"])
def test_products_are_added_and_whole_layers_replaced(base: Path, is_together: bool, tmp_path: Path) -> None:
    tensors = factors(base, Q, DOWN)
    old = weights(base)
    tensors[f"base_model.model.{HEAD}.weight"] = torch.randn_like(old[f"{HEAD}.weight"])
    folder = tmp_path / "adapter"
    if is_together:
        folder.mkdir()
        for path in base.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    adapter(folder, tensors, None if is_together else base, modules_to_save=["lm_head"])
    new = weights(merged(folder))
    for layer in (Q, DOWN):
        a, b = (tensors[f"base_model.model.{layer}.lora_{part}.weight"] for part in "AB")
        torch.testing.assert_close(new.pop(f"{layer}.weight"), old.pop(f"{layer}.weight") + 3 * b @ a)
    assert torch.equal(new.pop(f"{HEAD}.weight"), tensors[f"base_model.model.{HEAD}.weight"])
    old.pop(f"{HEAD}.weight")
    assert new.keys() == old.keys() and all(torch.equal(new[name], old[name]) for name in old)


def test_an_adapted_folder_is_pruned_on_request_only(base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", factors(base, Q), base)
    options: dict[str, Any] = {"recipe": "magnitude", "sparsity": 0.05, "align": 1, "output": tmp_path / "small"}
    with pytest.raises(LoadError, match=r"adapter without its base model, which merge_adapters .* adds"):
        gp.prune(str(folder), **options)
    with pytest.raises(LoadError, match="no adapter to merge; omit merge_adapters"):
        gp.prune(str(base), merge_adapters=True, **options)
    assert gp.prune(str(folder), merge_adapters=True, **options).report.parameters_after > 0
    assert model_folder.is_folder(tmp_path / "small") and not (tmp_path / "small" / "adapter_config.json").exists()


def test_a_folder_with_a_model_and_its_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    for path in base.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(LoadError, match=r"adapter and its model: merge both.*or remove adapter_config.json"):
        gp.load(adapter(tmp_path, factors(base, Q)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
        ({"use_dora": True}, "use_dora is True, which is not supported"),
        ({"bias": "all"}, "bias is 'all', expected 'none'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the weights"),
        ({"alpha_pattern": {"q_proj": 1}}, "alpha_pattern sets other scales"),
        ({"base_model_name_or_path": "no/such"}, "base_model_name_or_path is 'no/such', expected a folder"),
    ],
)
def test_other_adapters_are_refused(base: Path, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", factors(base, Q), **{"base_model_name_or_path": str(base), **settings})
    with pytest.raises(LoadError, match=message):
        merged(folder)


def test_factors_that_do_not_fit_are_refused(base: Path, tmp_path: Path) -> None:
    fine = factors(base, Q)
    first = next(iter(fine))
    for name, tensors in {
        "has one factor": {first: fine[first]},
        "stores no weight model.other.weight": {k.replace(Q, "model.other"): v for k, v in fine.items()},
        "has shape": {k: v[..., :3] if "lora_A" in k else v for k, v in fine.items()},
        "no factor of a linear layer": {**fine, f"base_model.model.{Q}.lora_magnitude_vector": torch.ones(2)},
    }.items():
        contiguous = {key: value.contiguous() for key, value in tensors.items()}
        with pytest.raises(LoadError, match=name):
            merged(adapter(tmp_path / "adapter", contiguous, base))


@pytest.mark.slow
def test_merging_is_that_of_peft(base: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    settings = peft.LoraConfig(
        r=4, lora_alpha=9, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"],
        rank_pattern={"q_proj": 2}, use_rslora=True,
    )  # fmt: skip
    model = peft.get_peft_model(transformers.LlamaForCausalLM.from_pretrained(base), settings)
    for weight in model.parameters():
        weight.data.add_(0.1 * torch.randn_like(weight) if weight.requires_grad else 0.0)
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    ours, theirs = weights(merged(tmp_path / "adapter")), weights(tmp_path / "merged")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name])
