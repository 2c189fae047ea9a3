"""Programs that passes made become folders, as those of `prune` do."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import graphprune as gp
from graphprune.errors import ExportError, VerificationError


def test_a_network_of_ones_own(images: Path) -> None:
    pixels = torch.randn(3, 3, 8, 8)
    loaded = gp.load(images)
    assert torch.export.load(images / "model.pt2").module()(pixels).shape == (3, 4)
    assert gp.verify_folder(images).parameters == loaded.count()
    damaged = images.parent / "damaged"
    gp.save(loaded, output=damaged)
    (damaged / "onnx" / "model.onnx").write_bytes(b"")
    with pytest.raises(VerificationError):
        gp.verify_folder(damaged)


def test_a_model_of_transformers(saved: Callable[..., Path], tmp_path: Path) -> None:
    program = gp.load(saved("llama"))
    small = gp.apply(program, gp.plan(program, sparsity=0.1, destination="stock"))
    ((what, worst),) = gp.save(small, output=tmp_path / "x", destination="stock")
    assert what == "reloaded folder and rewritten graph" and worst < 1e-5
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "x").num_parameters() == small.count()


def test_what_cannot_be_saved(saved: Callable[..., Path], tmp_path: Path) -> None:
    program = gp.trace(nn.Linear(3, 4), (torch.randn(2, 3),))
    with pytest.raises(ExportError, match="no destination 'phone'; choose one of stock, per-layer, free"):
        gp.save(program, output=tmp_path / "x", destination="phone")
    with pytest.raises(ExportError):
        gp.save(program, output=tmp_path / "x", destination="stock")
    folder = saved("llama")
    with pytest.raises(ExportError, match="which is read; choose another output"):
        gp.save(gp.load(folder), output=folder, force=True)
    (tmp_path / "y").mkdir()
    with pytest.raises(ExportError, match="exists already"):
        gp.save(program, output=tmp_path / "y")
    assert not (tmp_path / "x").exists() and list((tmp_path / "y").iterdir()) == []
