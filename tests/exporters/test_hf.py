"""Folders for transformers: the same numbers, in another precision or padded to widths that stock classes have."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from graphprune import hf, per_layer
from graphprune.contracts import ExportOptions
from graphprune.errors import ExportError
from graphprune.exporters import EXPORTERS
from graphprune.exporters import hf as target
from graphprune.exporters.huggingface import save
from graphprune.exporters.verify import verify_folder
from graphprune.frontends.modules import trace
from graphprune.program import Source

Save = Callable[..., Path]
IDS = torch.arange(3, 17).view(2, 7)


@pytest.fixture(scope="module")
def uneven(configure: Callable[..., PreTrainedConfig], saved: Save, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder whose second layer has half of the heads and of the feed-forward width."""
    config = configure("llama", use_cache=False)
    config.allow_global_per_layer_attribute_access = True
    config.per_layer_config = {1: {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 20}}
    torch.manual_seed(3)
    program = trace(per_layer.build(config).train(False), (), {"input_ids": IDS})
    folder = tmp_path_factory.mktemp("uneven") / "model"
    save(replace(program, source=Source(saved("llama"), "huggingface")), folder, destination="per-layer")
    return folder


def export(source: Path, output: Path, **options: Any) -> dict[str, Any]:
    return EXPORTERS["hf"](source, output, ExportOptions(**options)).facts


def test_a_portable_folder_is_one_of_the_stock_class(uneven: Path, tmp_path: Path) -> None:
    facts = export(uneven, tmp_path / "x", portable=True)
    config = AutoConfig.from_pretrained(tmp_path / "x")
    assert not per_layer.is_per_layer(config) and "auto_map" not in json.loads(
        (tmp_path / "x" / "config.json").read_text()
    )
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "x")
    assert type(model).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(model(IDS).logits, hf.module(uneven)(IDS).logits, atol=1e-5, rtol=1e-5)
    assert facts["tokens_compared"] == 24 and facts["stored_numbers"] > facts["parameters"]
    zeros = facts["stored_numbers"] - facts["parameters"]
    assert (
        f"{zeros:,} of its {facts['stored_numbers']:,} parameters are zeros"
        in (tmp_path / "x" / "README.md").read_text()
    )
    assert not list((tmp_path / "x").glob("*.py"))
    AutoTokenizer.from_pretrained(tmp_path / "x")


def test_without_portable_the_layers_stay_as_they_are(uneven: Path, tmp_path: Path) -> None:
    facts = export(uneven, tmp_path / "x", dtype="fp16")
    assert facts["stored_numbers"] == facts["parameters"] and facts["options"]["dtype"] == "fp16"
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "x", trust_remote_code=True)
    assert model.dtype == torch.float16 and model.model.layers[1].mlp.up_proj.out_features == 20
    assert verify_folder(tmp_path / "x").parameters == facts["parameters"]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "vit", "resnet", "t5"])
def test_stock_models_are_copied(saved: Save, tmp_path: Path, kind: str) -> None:
    facts = export(saved(kind), tmp_path / "x")
    assert facts["error"]["absolute"] == 0.0 and ("tokens_compared" in facts) == (kind in ("llama", "gpt2"))


def test_what_transformers_4_asks_for_is_there(uneven: Path, tmp_path: Path) -> None:
    export(uneven, tmp_path / "x", portable=True)
    assert json.loads((tmp_path / "x" / "config.json").read_text())["rope_theta"] == 50000.0
    assert (
        json.loads((tmp_path / "x" / "tokenizer_config.json").read_text())["tokenizer_class"]
        == "PreTrainedTokenizerFast"
    )


def test_padding_that_would_change_the_model_is_refused(
    uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = target._padded
    monkeypatch.setattr(target, "_padded", lambda tensor, shape: wrong(tensor, shape).flip(0))
    with pytest.raises(ExportError, match="the reloaded model does not agree|writes"):
        export(uneven, tmp_path / "x", portable=True)
    assert not (tmp_path / "x").exists()


def test_options_that_it_does_not_take(uneven: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"target hf cannot be made with quant int8; it takes dtype \(fp32, fp16\), por"
    ):
        export(uneven, tmp_path / "x", quant="int8")
