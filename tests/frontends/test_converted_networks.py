"""ONNX files that converters of other frameworks wrote are cut exactly; `tools/convert_networks.py` made them."""

from pathlib import Path

import onnxruntime
import pytest

import graphprune as gp
from tests.frontends.onnx_graphs import numbers

FILES = Path(__file__).parent / "converted"
SHAPES = {"keras": (3, 12, 12, 3)}


@pytest.mark.parametrize("name", SHAPES)
def test_half_of_every_group_is_removed(name: str, tmp_path: Path) -> None:
    """ONNX Runtime computes the same with the new file and with the masked original."""
    program = gp.load(FILES / f"{name}.onnx")
    small = gp.apply(program, gp.plan(program, ratio=0.5, recipe="magnitude"))
    assert small.count() < 0.6 * program.count()
    compared = dict(gp.save(small, output=tmp_path / "out"))
    assert compared["ONNX and masked original file"] < 1e-4
    before, after = (
        onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        for file in (FILES / f"{name}.onnx", tmp_path / "out/onnx/model.onnx")
    )
    (given,) = after.get_inputs()
    assert given.name == before.get_inputs()[0].name
    shapes = [session.run(None, {given.name: numbers(*SHAPES[name])})[0].shape for session in (before, after)]
    assert shapes[0] == shapes[1]
