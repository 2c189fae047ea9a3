"""A target decides where a pruned model must run and how wide it is, unless that is said."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, ResNetConfig, ResNetForImageClassification

import graphprune as gp
from graphprune.errors import PlanError, RegistryError
from graphprune.exporters import EXPORTERS
from graphprune.workflows.target_needs import TargetNeeds


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder(tmp_path_factory.mktemp("llama"), layers=2)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder(tmp_path_factory.mktemp("shallow"), layers=1)


def decoder(folder: Path, layers: int) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=160, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def prune(model: Path, output: Path, **options: Any) -> Any:
    return gp.prune(model, output=output, recipe="magnitude", **{"sparsity": 0.2, **options}).report


def test_every_target_says_what_it_needs() -> None:
    for needs in (EXPORTERS[target].needs for target in EXPORTERS):
        assert needs.why and set(needs.destinations) <= {"stock", "per-layer", "free"}


def test_a_graph_without_a_cache_is_refused_before_any_work(llama: Path, tmp_path: Path) -> None:
    words = (
        "target litert exports graphs of destination free without a cache, .* generates text; use destination stock or"
    )
    with pytest.raises(PlanError, match=words):
        gp.prune(llama, sparsity=0.2, target="litert", destination="free", recipe="magnitude", output=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_target_sets_destination_and_alignment(llama: Path, tmp_path: Path) -> None:
    report = prune(llama, tmp_path / "x", target="onnx-gpu")
    assert report.destination == "per-layer"
    assert all(width % 64 == 0 for name, (_, width) in report.widths.items() if "mlp" in name)
    assert report.notes[0].startswith(
        "for target onnx-gpu: destination per-layer, widths in multiples of 64 (tensor cor"
    )
    limit = next(note for note in report.notes if note.startswith("limited by destination per-layer: no narrower"))
    assert "value dimensions" in limit and "since no field of" in limit
    made = gp.export(tmp_path / "x", target="hf", output=tmp_path / "y")
    assert made.facts["parameters"] == report.parameters_after
    assert made.facts["parameters_before"] == report.parameters_before


def test_what_is_said_holds_and_slow_widths_are_named(shallow: Path, tmp_path: Path) -> None:
    report = prune(shallow, tmp_path / "x", target="onnx-gpu", align=8, destination="stock", sparsity=0.3)
    assert report.destination == "stock"
    width = next(width for name, (_, width) in report.widths.items() if "mlp" in name)
    assert width % 64 and any(
        f"such as model.layers.0.mlp.gate_proj.weight:0 are {width} wide, which runs no faster on onnx-gpu than 128"
        in note
        for note in report.notes
    )


def test_without_a_target_nothing_changes(shallow: Path, tmp_path: Path) -> None:
    report = prune(shallow, tmp_path / "x")
    assert report.destination == "stock" and not any("target" in note for note in report.notes)
    assert TargetNeeds.of(None, None, None).align_of(gp.load(shallow)) == 8


def test_convolutions_have_an_alignment_of_their_own(tmp_path: Path) -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    program = gp.load(tmp_path / "resnet")
    assert TargetNeeds.of("onnx", None, None).align_of(program) == 16
    program = gp.trace(nn.Linear(3, 4), (torch.randn(2, 3),))
    assert TargetNeeds.of("onnx", None, None).align_of(program) == 32


def test_what_a_target_cannot_be_made_of(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="target gguf cannot be made of a model pruned for destination free; use per-l"):
        prune(llama, tmp_path / "x", target="gguf", destination="free")
    with pytest.raises(RegistryError, match="no target 'onx'; did you mean onnx"):
        prune(llama, tmp_path / "x", target="onx")
    assert not (tmp_path / "x").exists()
