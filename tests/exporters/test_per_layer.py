"""Layers of different widths, in the way of transformers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig

from graphprune.errors import ExportError
from graphprune.exporters.model_folders import folder_writer
from graphprune.exporters.model_folders.folder_writer import save
from graphprune.frontends import huggingface
from graphprune.frontends.modules import trace
from graphprune.huggingface import model_folder, per_layer
from graphprune.huggingface.meta_models import describe, on_meta
from graphprune.ir.program import Program, Source

Configure = Callable[..., PreTrainedConfig]
WIDTHS: dict[int | str, dict[str, Any]] = {
    0: {"intermediate_size": 20},
    1: {"intermediate_size": 30, "num_attention_heads": 4, "num_key_value_heads": 2},
}
IDS = torch.arange(14).view(2, 7) % 60


@pytest.fixture(scope="module")
def uneven(configure: Configure) -> nn.Module:
    """A model whose layers differ."""
    config = configure("llama")
    config.allow_global_per_layer_attribute_access = True
    config.per_layer_config = WIDTHS
    torch.manual_seed(0)
    config.use_cache = False
    built: nn.Module = per_layer.build(config).train(False)
    return built


@pytest.fixture(scope="module")
def program(uneven: nn.Module, saved: Callable[..., Path]) -> Program:
    traced = trace(uneven, (), {"input_ids": IDS})
    return replace(traced, source=Source(saved("llama"), "huggingface", torch.float32))


@pytest.fixture(scope="module")
def folder(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("per-layer") / "out"
    save(program, out, destination="per-layer")
    return out


def test_each_layer_gets_its_own_fields(configure: Configure, uneven: nn.Module) -> None:
    fitted = per_layer.fit_layers(configure("llama"), describe(uneven).shapes)
    assert [fitted.per_layer_config[i].intermediate_size for i in range(2)] == [20, 30]
    assert [fitted.per_layer_config[i].num_attention_heads for i in range(2)] == [8, 4]
    assert [fitted.per_layer_config[i].num_key_value_heads for i in range(2)] == [4, 2]
    assert describe(per_layer.build_on_meta(fitted)).shapes == describe(uneven).shapes


def test_transformers_loads_it_with_its_code(folder: Path, uneven: nn.Module) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, uneven(IDS).logits)
        assert type(model).is_backend_compatible(), "servers can give it an attention of their own"
        assert model.generate(IDS, max_new_tokens=3, min_new_tokens=3).shape == (2, 10)
        static = model.generate(IDS, max_new_tokens=3, min_new_tokens=3, cache_implementation="static")
        assert torch.equal(static, model.generate(IDS, max_new_tokens=3, min_new_tokens=3))


def test_saved_again_it_is_the_same(folder: Path, tmp_path: Path, uneven: nn.Module) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained(tmp_path / "again")
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert again.config.architectures == ["PerLayerLlamaForCausalLM"]
    program = huggingface.load(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, uneven(IDS).logits)
        assert torch.equal(model_folder.module(tmp_path / "again")(IDS).logits, uneven(IDS).logits)
    report = save(program, tmp_path / "pruned again", destination="per-layer")
    assert report.facts["error"]["relative"] < 1e-6


def test_without_its_head_it_loads_by_automodel(folder: Path, uneven: Any) -> None:
    body: Any = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(body).__name__ == "PerLayerLlamaModel"
    with torch.no_grad():
        assert torch.equal(body(IDS).last_hidden_state, uneven.model(IDS).last_hidden_state)


@pytest.mark.parametrize("architecture", ["BertModel", "BertForMaskedLM"])
def test_encoders_load_by_automodel(configure: Configure, architecture: str, tmp_path: Path) -> None:
    config = configure("bert")
    config.architectures = [architecture]
    config.allow_global_per_layer_attribute_access = True
    config.per_layer_config = {0: {"intermediate_size": 20}}
    model = per_layer.build(config).train(False)
    model.save_pretrained(tmp_path)
    folder_writer.write_settings(tmp_path, config, torch.float32, "per-layer")
    body: Any = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    reference: Any = getattr(model, "bert", model)
    with torch.no_grad():
        assert torch.equal(body(IDS).last_hidden_state, reference(IDS).last_hidden_state)
    assert body.encoder.layer[0].intermediate.dense.out_features == 20


def test_without_its_code_it_fails_loudly(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="size"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_graphprune_loads_it_without_running_its_code(folder: Path, uneven: nn.Module) -> None:
    path = folder / per_layer.FILE
    text = path.read_text()
    path.write_text("raise SystemExit('code of a folder was run')")
    try:
        with torch.no_grad():
            assert torch.equal(model_folder.module(folder)(IDS).logits, uneven(IDS).logits)
        assert huggingface.load(folder).count() == sum(p.numel() for p in uneven.parameters())
    finally:
        path.write_text(text)


def test_the_code_file_is_short_and_python(folder: Path) -> None:
    text = (folder / per_layer.FILE).read_text()
    compile(text, per_layer.FILE, "exec")
    assert text.count("\n") <= 40
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["auto_map"] == {
        "AutoModel": "modeling_per_layer.PerLayerLlamaModel",
        "AutoModelForCausalLM": "modeling_per_layer.PerLayerLlamaForCausalLM",
    }
    assert config["per_layer_config"]["0"] == {"intermediate_size": 20}


def test_a_pruned_one_can_be_pruned_again_and_is_checked_in_parts(folder: Path, tmp_path: Path) -> None:
    program = huggingface.load(folder)
    report = save(program, tmp_path / "again", destination="per-layer", limit=1, capture=huggingface.load)
    assert report.facts["destination"] == "per-layer" and report.facts["error"]["relative"] < 1e-6
    assert report.facts["compared"] == "folder read again in parts and rewritten graph"
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["per_layer_config"]["1"]["num_attention_heads"] == 4


def test_equal_layers_are_saved_as_stock(narrowed: Callable[..., Program], tmp_path: Path) -> None:
    report = save(narrowed("llama", intermediate_size=20), tmp_path / "out", destination="per-layer")
    assert report.facts["destination"] == "stock"
    assert per_layer.FILE not in report.files
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize(("kind", "width"), [("opt", 40), ("gpt2", 128), ("bert", 40), ("vit", 40)])
def test_every_kind_of_layer_can_be_built_alone(configure: Configure, kind: str, width: int) -> None:
    shapes = {
        name: tuple(9 if size == width and ".1." in name else size for size in shape)
        for name, shape in describe(on_meta(configure(kind))).shapes.items()
    }
    fitted = per_layer.fit_layers(configure(kind), shapes)
    assert describe(per_layer.build_on_meta(fitted)).shapes == shapes


def test_what_cannot_be_built_layer_by_layer_is_refused(configure: Configure) -> None:
    with pytest.raises(ExportError, match=r"ResNetConfig has no num_hidden_layers.*destination free"):
        per_layer.fit_layers(configure("resnet"), describe(on_meta(configure("resnet"))).shapes)
    with pytest.raises(ExportError, match=r"T5ForConditionalGeneration has 2 lists of"):
        per_layer.fit_layers(configure("t5"), describe(on_meta(configure("t5"))).shapes)


def test_widths_outside_the_layers_must_have_a_field(configure: Configure) -> None:
    shapes = {**describe(on_meta(configure("llama"))).shapes, "model.norm.weight": (31,)}
    with pytest.raises(ExportError, match=r"model\.norm\.weight 31 instead of 32"):
        per_layer.fit_layers(configure("llama"), shapes)
