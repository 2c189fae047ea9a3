"""Tests of folders of further modules, as sentence-transformers lists them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import graphprune as gp
from graphprune.errors import ExportError
from graphprune.exporters.model_folders.module_folders import copy_modules, embedding_indices, follow_width
from graphprune.frontends.modules import trace


def test_listed_modules_are_copied_and_follow_the_width(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "copy"
    for name, settings in (("1_Pooling", {"word_embedding_dimension": 32}), ("2_Dense", {"in_features": 32})):
        (source / name).mkdir(parents=True)
        (source / name / "config.json").write_text(json.dumps(settings))
        (source / name / "code.py").touch()
    paths = ["", "1_Pooling", "2_Dense", "../other", "3_Normalize"]
    folder.mkdir()
    for place in (source, folder):
        (place / "modules.json").write_text(json.dumps([{"idx": i, "path": path} for i, path in enumerate(paths)]))
    copy_modules(source, folder)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {"modules.json", "1_Pooling/config.json", "2_Dense/config.json"}
    follow_width(folder, 32, 32)
    with pytest.raises(ExportError, match="2_Dense has weights for embeddings of width 32, which the cut makes 24"):
        follow_width(folder, 32, 24)
    assert json.loads((folder / "1_Pooling" / "config.json").read_text()) == {"word_embedding_dimension": 24}


def test_a_linear_layer_behind_a_narrower_embedding_loses_its_columns(tmp_path: Path) -> None:
    """Modules behind it read its outputs, whose width remains."""
    widths = {"1_Pooling": {"embedding_dimension": 6}, "2_Dense": {"in_features": 6, "out_features": 6}}
    for name, settings in {**widths, "3_Other": {"embedding_dimension": 6}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(settings))
    weight = torch.arange(36.0).view(6, 6)
    file = tmp_path / "2_Dense" / "model.safetensors"
    save_file({"linear.weight": weight, "linear.bias": torch.ones(6)}, file)
    names = ["1_Pooling", "2_Dense", "3_Other"]
    (tmp_path / "modules.json").write_text(json.dumps([{"path": name} for name in names]))
    follow_width(tmp_path, 6, 4, [0, 2, 3, 5])
    assert torch.equal(load_file(file)["linear.weight"], weight[:, [0, 2, 3, 5]])
    tables = [json.loads((tmp_path / name / "config.json").read_text()) for name in names]
    assert tables == [
        {"embedding_dimension": 4},
        {"in_features": 4, "out_features": 6},
        {"embedding_dimension": 6},
    ]


def test_the_weights_of_another_module_cannot_follow(tmp_path: Path) -> None:
    (tmp_path / "1_LayerNorm").mkdir()
    (tmp_path / "1_LayerNorm" / "config.json").write_text(json.dumps({"dimension": 6}))
    save_file({"norm.weight": torch.ones(6)}, tmp_path / "1_LayerNorm" / "model.safetensors")
    (tmp_path / "modules.json").write_text(json.dumps([{"path": "1_LayerNorm"}]))
    with pytest.raises(ExportError, match="1_LayerNorm has weights for embeddings of width 6, which the cut makes 4"):
        follow_width(tmp_path, 6, 4, [0, 2, 3, 5])


def test_the_indices_of_an_embedding_are_those_of_the_output() -> None:
    torch.manual_seed(0)
    program = trace(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6)), (torch.randn(3, 5),), state=("*",))
    plan = gp.plan(program, ratio=0.5)
    assert embedding_indices(gp.apply(program, plan), 6) == plan.keep["2.weight"][0].tolist()
    assert embedding_indices(program, 6) == []
