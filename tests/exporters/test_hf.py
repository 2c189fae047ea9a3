"""Folders for transformers: the same numbers, in another precision or padded to widths that stock classes have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from graphprune.errors import ExportError, VerificationError
from graphprune.exporters import EXPORTERS
from graphprune.exporters.contract import ExportOptions
from graphprune.exporters.export_folders.folder_check import verify_folder
from graphprune.exporters.targets import hf as target
from graphprune.huggingface import model_folder, per_layer

Save = Callable[..., Path]
IDS = torch.arange(3, 17).view(2, 7)


@pytest.fixture(scope="module")
def folder(uneven: Save) -> Path:
    """A decoder whose second layer has half of the heads and of the feed-forward width."""
    return uneven()


def export(source: Path, output: Path, **options: Any) -> dict[str, Any]:
    return EXPORTERS["hf"].export(source, output, ExportOptions(**options)).facts


def test_a_portable_folder_is_one_of_the_stock_class(folder: Path, tmp_path: Path) -> None:
    facts = export(folder, tmp_path / "x", portable=True)
    config = AutoConfig.from_pretrained(tmp_path / "x")
    assert not per_layer.is_per_layer(config) and "auto_map" not in json.loads(
        (tmp_path / "x" / "config.json").read_text()
    )
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "x")
    assert type(model).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(model(IDS).logits, model_folder.module(folder)(IDS).logits, atol=1e-5, rtol=1e-5)
    assert facts["tokens_compared"] == 24 and facts["stored_numbers"] > facts["parameters"]
    zeros = facts["stored_numbers"] - facts["parameters"]
    assert (
        f"{zeros:,} of its {facts['stored_numbers']:,} parameters are zeros"
        in (tmp_path / "x" / "README.md").read_text()
    )
    assert not list((tmp_path / "x").glob("*.py"))
    AutoTokenizer.from_pretrained(tmp_path / "x")


def test_without_portable_the_layers_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    facts = export(folder, tmp_path / "x", dtype="fp16")
    assert facts["stored_numbers"] == facts["parameters"] and facts["options"]["dtype"] == "fp16"
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "x", trust_remote_code=True)
    assert model.dtype == torch.float16 and model.model.layers[1].mlp.up_proj.out_features == 20
    assert verify_folder(tmp_path / "x").parameters == facts["parameters"]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "vit", "resnet", "t5"])
def test_stock_models_are_copied(saved: Save, tmp_path: Path, kind: str) -> None:
    facts = export(saved(kind), tmp_path / "x")
    assert facts["error"]["absolute"] == 0.0 and ("tokens_compared" in facts) == (kind in ("llama", "gpt2"))


def test_what_transformers_4_asks_for_is_there(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "x", portable=True)
    assert json.loads((tmp_path / "x" / "config.json").read_text())["rope_theta"] == 50000.0
    tokenizer = json.loads((tmp_path / "x" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]


def test_padding_that_would_change_the_model_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = target._padded
    monkeypatch.setattr(target, "_padded", lambda tensor, shape: wrong(tensor, shape).flip(0))
    with pytest.raises(ExportError, match="the reloaded model does not agree|writes"):
        export(folder, tmp_path / "x", portable=True)
    assert not (tmp_path / "x").exists()


def test_options_that_it_does_not_take(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"target hf cannot be made with quant int8; it takes dtype \(fp32, fp16\), por"
    ):
        export(folder, tmp_path / "x", quant="int8")


def test_a_folder_that_changed_is_noticed(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "x", portable=True)
    assert verify_folder(tmp_path / "x").checks[-1].startswith("it agrees with the model in")
    weights = load_file(tmp_path / "x" / "model.safetensors")
    name = next(name for name in weights if name.endswith("down_proj.weight"))
    save_file({**weights, name: weights[name] * 2}, tmp_path / "x" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match="the reloaded model does not agree"):
        verify_folder(tmp_path / "x")
    save_file({name: weights[name]}, tmp_path / "x" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match="its weights take .* bytes, expected .* from its report"):
        verify_folder(tmp_path / "x")
