"""Folders of graphs: what a folder lacks is explained where it is needed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import ExportError
from graphprune.exporters.targets import onnx


def test_an_export_repeats_why_a_folder_has_no_onnx_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: Any) -> None:
        raise ExportError("ONNX has no operator for aten.rare")

    monkeypatch.setattr(onnx, "export_program", refuse)
    gp.save(gp.trace(nn.Linear(4, 3), (torch.randn(2, 4),)), output=tmp_path / "saved")
    gp.verify_folder(tmp_path / "saved")
    with pytest.raises(ExportError, match=r"takes \(reason: ONNX has no operator for aten.rare\); use a target that"):
        gp.export(tmp_path / "saved", target="onnx", output=tmp_path / "out")
