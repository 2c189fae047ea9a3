"""Models that came from ONNX files go on to other runtimes, by the names of sizes that their files have."""

from pathlib import Path

import pytest

import graphprune as gp
from graphprune.errors import ExportError
from tests.frontends.onnx_graphs import attentive, convolutional, write


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("image"), convolutional())


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("text"), attentive())


def saved(folder: Path, built: object) -> Path:
    gp.save(gp.load(write(folder, built)), output=folder / "saved")  # type: ignore[arg-type]
    return folder / "saved"


def test_the_first_size_of_inputs_is_one_on_a_phone(image: Path, tmp_path: Path) -> None:
    made = gp.export(image, target="onnx-mobile", output=tmp_path / "phone")
    assert made.facts["sizes"]["image"] == [1, 3, 9, 9]
    made = gp.export(image, target="onnx-mobile", output=tmp_path / "three", static={"images": 3})
    assert made.facts["sizes"]["image"] == [3, 3, 9, 9] and "model.ort" in made.files


def test_other_sizes_are_named_by_the_user(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the size of tokens has no default; pass --static rows=N,tokens=N"):
        gp.export(text, target="onnx-mobile", output=tmp_path / "phone")
    made = gp.export(text, target="onnx-mobile", output=tmp_path / "phone", static={"rows": 1, "tokens": 5})
    assert [1, 5] in made.facts["sizes"].values()


def test_an_older_opset_rises_where_weights_need_a_newer_one(text: Path, tmp_path: Path) -> None:
    made = gp.export(text, target="onnx", output=tmp_path / "eight", quant="int8")
    assert made.facts["opset"]["ai.onnx"] == 21 and made.facts["operators"]["ai.onnx"]["DequantizeLinear"] > 0
    with pytest.raises(ExportError, match="int8 needs operators of opset 21 or later; omit --opset"):
        gp.export(text, target="onnx", output=tmp_path / "old", quant="int8", opset=18)


def test_what_takes_other_models_says_so(image: Path, tmp_path: Path) -> None:
    for target in ("hf", "gguf"):
        with pytest.raises(ExportError, match=f"target {target} takes one that does; use another target"):
            gp.export(image, target=target, output=tmp_path / target)
    with pytest.raises(ExportError, match="cannot be cast to fp16.*use --dtype fp32"):
        gp.export(image, target="onnx-gpu", output=tmp_path / "gpu")
