"""LiteRT files, run by LiteRT's interpreter and compared with the model."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import graphprune as gp
from graphprune.errors import ExportError, VerificationError
from graphprune.exporters import EXPORTERS
from graphprune.exporters.contract import ExportOptions
from graphprune.exporters.export_folders.folder_check import verify_folder

pytest.importorskip("litert_torch", reason="needs graphprune[litert]")

Save = Callable[..., Path]
ONE = {"num_hidden_layers": 1}


def export(source: Path, output: Path, **options: Any) -> dict[str, Any]:
    return EXPORTERS["litert"].export(source, output, ExportOptions(**options)).facts


def test_an_encoder_by_the_names_of_its_inputs(saved: Save, tmp_path: Path) -> None:
    facts = export(saved("bert", **ONE), tmp_path / "x", static={"sequence": 6})
    parity = facts["parity"]["litert"]
    assert parity["worst"] < 5e-4 and "batch 1, one padded on the right" in parity["cases"]
    interpreter = import_module("ai_edge_litert.interpreter").Interpreter(str(tmp_path / "x" / "model.tflite"))
    (signature,) = interpreter.get_signature_list().values()
    assert signature == {"inputs": ["attention_mask", "input_ids", "token_type_ids"], "outputs": ["logits"]}
    verified = verify_folder(tmp_path / "x")
    assert verified.kind == "litert" and verified.max_error == pytest.approx(parity["worst"], rel=0.5)


@pytest.mark.parametrize(("kind", "static"), [("resnet", {"batch": 2}), ("vit", {})])
def test_models_of_images(saved: Save, tmp_path: Path, kind: str, static: dict[str, int]) -> None:
    facts = export(saved(kind), tmp_path / "x", static=static)
    assert facts["parity"]["litert"]["worst"] < 5e-4 and facts["versions"]["litert-torch"]


def test_the_graph_of_a_network_of_ones_own(images: Path, tmp_path: Path) -> None:
    made = gp.export(images, target="litert", output=tmp_path / "x")
    assert made.facts["parity"]["litert"]["worst"] < 1e-5 and made.facts["source"] == str(images)
    assert f"it agrees with the model in {images}" in gp.verify_folder(tmp_path / "x").checks


def test_decoders_are_refused(saved: Save, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="LlamaForCausalLM generates text, .* its cache, .* use target executorch"):
        export(saved("llama", **ONE), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_damaged_file(saved: Save, tmp_path: Path) -> None:
    out = tmp_path / "x"
    size = export(saved("resnet"), out)["bytes"]
    (out / "model.tflite").write_bytes(bytes(size))
    with pytest.raises(VerificationError, match=r"LiteRT cannot open model.tflite .*; export it again"):
        verify_folder(out)
