"""OpenVINO IR, read anew by OpenVINO and compared with the model."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphprune.errors import ExportError, VerificationError
from graphprune.exporters import EXPORTERS
from graphprune.exporters.checks import divergence
from graphprune.exporters.contract import ExportOptions
from graphprune.exporters.export_folders.folder_check import verify_folder
from graphprune.huggingface import model_folder

openvino: Any = pytest.importorskip("openvino", reason="needs graphprune[openvino]")

Save = Callable[..., Path]
ONE = {"num_hidden_layers": 1}


def export(source: Path, output: Path, **options: Any) -> dict[str, Any]:
    return EXPORTERS["openvino"].export(source, output, ExportOptions(**options)).facts


def stored(folder: Path) -> dict[str, str]:
    """The types of stored tensors by name."""
    nodes = openvino.Core().read_model(str(folder / "model.xml")).get_ops()
    constants = [node for node in nodes if node.get_type_name() == "Constant"]
    return {node.get_friendly_name(): node.get_element_type().get_type_name() for node in constants}


@pytest.mark.parametrize("kind", ["llama", "opt", "bert", "vit", "resnet"])
def test_models_of_all_kinds(saved: Save, tmp_path: Path, kind: str) -> None:
    facts = export(saved(kind), tmp_path / "x")
    parity = facts["parity"]["openvino"]
    assert parity["worst"] < parity["bound"] == 5e-4 and len(parity["cases"]) >= 3
    assert facts["versions"]["openvino"] and facts["operators"]["Parameter"] == len(facts["inputs"])
    names = {path.name for path in (tmp_path / "x").iterdir()}
    assert {"model.xml", "model.bin", "config.json", "export_report.json"} <= names
    assert not any("onnx" in name for name in names)
    verified = verify_folder(tmp_path / "x")
    assert verified.kind == "openvino" and verified.max_error == pytest.approx(parity["worst"], rel=0.5)


def test_layers_of_different_widths(uneven: Save, tmp_path: Path) -> None:
    assert export(uneven(), tmp_path / "x")["parity"]["openvino"]["worst"] < 5e-4


def test_matrices_in_half_precision_and_no_frequencies(saved: Save, tmp_path: Path) -> None:
    source = saved("llama", **ONE)
    _, halved = (export(source, tmp_path / dtype, dtype=dtype) for dtype in ("fp32", "fp16"))
    weights = [(tmp_path / dtype / "model.bin").stat().st_size for dtype in ("fp32", "fp16")]
    assert weights[1] < 0.6 * weights[0] and halved["parity"]["openvino"]["bound"] == 5e-3
    kinds = stored(tmp_path / "fp16")
    assert {kind for name, kind in kinds.items() if "inv_freq" in name or "norm" in name} == {"f32"}
    assert list(kinds.values()).count("f16") == 9  # seven products, the head, and the table
    assert verify_folder(tmp_path / "fp16").max_error is not None


@pytest.mark.parametrize(("quant", "kind"), [("int8", "i8"), ("int4", "u4")])
def test_weights_in_fewer_bits(saved: Save, tmp_path: Path, quant: str, kind: str) -> None:
    facts = export(saved("llama", hidden_size=64, intermediate_size=96, **ONE), tmp_path / "x", quant=quant)
    parity = facts["parity"]["openvino"]
    assert parity["worst"] > 1e-4 and parity["divergence"] < divergence.BOUNDS[quant][0]
    assert list(stored(tmp_path / "x").values()).count(kind) >= 14  # each product and its zero points
    assert verify_folder(tmp_path / "x").max_error == pytest.approx(parity["worst"], rel=1e-3)


def test_fixed_sizes(saved: Save, tmp_path: Path) -> None:
    export(saved("llama", **ONE), tmp_path / "x", static={"batch": 1, "sequence": 1, "past": 9})
    model = openvino.Core().read_model(str(tmp_path / "x" / "model.xml"))
    assert all(port.get_partial_shape().is_static for port in model.inputs)
    assert verify_folder(tmp_path / "x").max_error is not None


def test_values_beyond_half_precision(saved: Save, tmp_path: Path) -> None:
    source = Path(shutil.copytree(saved("resnet"), tmp_path / "source"))
    large = model_folder.module(source)
    next(p for p in large.parameters() if p.dim() > 1).data[0] = 1e5
    large.save_pretrained(source)
    with pytest.raises(ExportError, match="has values beyond what half precision holds; use --dtype fp32"):
        export(source, tmp_path / "x", dtype="fp16")
    assert not (tmp_path / "x").exists()


def test_a_damaged_folder_and_one_without_its_model(saved: Save, tmp_path: Path) -> None:
    source, out = Path(shutil.copytree(saved("resnet"), tmp_path / "source")), tmp_path / "x"
    export(source, out)
    shutil.rmtree(source)
    assert verify_folder(out).checks == ["it opens"]
    with (out / "model.bin").open("ab") as file:
        file.write(b"more")
    with pytest.raises(VerificationError, match=r"model.xml has \d+ bytes, expected \d+ from its report: export again"):
        verify_folder(out)
