"""Tests of graphs that no transformers class can run: their ONNX files are exported to every target of such files."""

from pathlib import Path
from typing import Any

import onnx
import pytest

import graphprune as gp
from graphprune.errors import ExportError, VerificationError
from graphprune.exporters import EXPORTERS
from graphprune.exporters.contract import ExportOptions
from graphprune.exporters.export_folders.folder_check import verify_folder


def export(source: Path, output: Path, target: str, **options: Any) -> dict[str, Any]:
    return EXPORTERS[target].export(source, output, ExportOptions(**options)).facts


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("onnx", {"quant": "int8"}),
        ("onnx", {"static": {"batch": 1, "sequence": 2, "past": 6}}),
        ("onnx-mobile", {}),
        ("onnx-gpu", {"dtype": "fp32"}),
    ],
)
def test_a_decoder(decoder: Path, tmp_path: Path, target: str, options: dict[str, Any]) -> None:
    facts = export(decoder, tmp_path / "x", target, **options)
    assert facts["parity"]["CPUExecutionProvider"]["worst"] < (0.05 if "quant" in options else 1e-5)
    assert facts["source"] == str(decoder)
    assert f"it agrees with the model in {decoder}" in verify_folder(tmp_path / "x").checks


def test_a_network_of_ones_own(images: Path, tmp_path: Path) -> None:
    made = gp.export(images, target="onnx-mobile", output=tmp_path / "x")
    assert (
        made.facts["parity"]["model.ort"]["worst"] < 1e-5 and made.facts["usability"]["CoreML MLProgram"]["lacks"] == []
    )
    graph = onnx.load(str(tmp_path / "x" / "model.onnx")).graph
    assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == [1, 3, 8, 8]
    assert gp.verify_folder(tmp_path / "x").max_error is not None
    older = gp.export(images, target="onnx", opset=20, output=tmp_path / "y")
    assert older.facts["opset"] == {"ai.onnx": 20}
    web = gp.export(images, target="web", output=tmp_path / "z")
    assert "web.json" in web.files


def test_what_a_file_cannot_become(decoder: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="holds a graph in float32, which cannot be cast to fp16 .*use --dtype fp32"):
        export(decoder, tmp_path / "x", "onnx-gpu")
    with pytest.raises(ExportError, match=r"model\.onnx cannot be converted to opset 20 \(.*RMSNorm.*omit --opset"):
        export(decoder, tmp_path / "x", "onnx", opset=20)
    with pytest.raises(ExportError, match="a graph that no class of transformers runs, and target gguf takes one that"):
        gp.export(images, target="gguf", output=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_damage_is_found(decoder: Path, tmp_path: Path) -> None:
    export(decoder, tmp_path / "x", "onnx", static={"batch": 1, "sequence": 2, "past": 6})
    path = tmp_path / "x" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(VerificationError):
        verify_folder(tmp_path / "x")
