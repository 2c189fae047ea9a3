"""Tests of target onnx-mobile: static shapes, an .ort file with the same outputs, and a report on accelerators."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from graphprune.exporters import EXPORTERS
from graphprune.exporters.contract import ExportOptions
from graphprune.exporters.export_folders.folder_check import verify_folder

Save = Callable[..., Path]


def export(source: Path, output: Path, **options: Any) -> dict[str, Any]:
    return EXPORTERS["onnx-mobile"].export(source, output, ExportOptions(**options)).facts


@pytest.mark.parametrize(("kind", "suitable"), [("resnet", "yes"), pytest.param("bert", None, marks=pytest.mark.slow)])
def test_without_free_dimensions(saved: Save, tmp_path: Path, kind: str, suitable: str | None) -> None:
    facts = export(saved(kind), tmp_path / "x")
    graph = onnx.load(str(tmp_path / "x" / "model.onnx")).graph
    assert all(dim.dim_value for value in graph.input for dim in value.type.tensor_type.shape.dim)
    assert facts["opset"] == {"ai.onnx": 20} and facts["options"]["static"]["batch"] == 1
    assert facts["parity"]["model.ort"]["worst"] < 1e-4 and (tmp_path / "x" / "model.ort").is_file()
    usability = facts["usability"]
    assert usability.keys() == {"NNAPI", "CoreML MLProgram", "CoreML NeuralNetwork", "XNNPACK"}
    assert all(0 < counts["nodes"] <= counts["of"] for counts in usability.values())
    if suitable:
        assert usability["CoreML MLProgram"]["suitable"] == suitable and not usability["CoreML MLProgram"]["lacks"]
    assert "ai.onnx:Add" in usability["XNNPACK"]["lacks"]
    assert verify_folder(tmp_path / "x").max_error is not None


def test_a_decoder_goes_token_by_token(saved: Save, tmp_path: Path) -> None:
    facts = export(saved("llama", num_hidden_layers=1), tmp_path / "x", static={"batch": 1, "sequence": 1, "past": 15})
    assert {"IsNaN", "Attention"}.isdisjoint(facts["operators"]["ai.onnx"])
    assert facts["parity"]["model.ort"]["worst"] < 1e-4


def test_weights_in_fewer_bits(saved: Save, tmp_path: Path) -> None:
    facts = export(saved("bert", num_hidden_layers=1), tmp_path / "x", quant="int4")
    assert facts["operators"]["com.microsoft"]["MatMulNBits"] >= 6
    assert facts["parity"]["model.ort"]["worst"] == pytest.approx(
        facts["parity"]["CPUExecutionProvider"]["worst"], rel=0.2
    )
