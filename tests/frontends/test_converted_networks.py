"""ONNX files that converters of other frameworks wrote are cut exactly; `tools/convert_networks.py` made them."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import graphprune as gp
from tests.frontends.onnx_graphs import numbers

FILES = Path(__file__).parent / "converted"
SHAPES = {"keras": (12, 12, 3), "jax": (6,), "sklearn": (6,)}


def masked(file: Path, plan: gp.Plan) -> bytes:
    """The file with zeros in place of all that a plan removes; made here, without graphprune."""
    model, count = onnx.load(file), 0
    for stored in model.graph.initializer:
        array = numpy_helper.to_array(stored).copy()
        for dim, retained in plan.keep.get(stored.name, {}).items():
            removed = np.setdiff1d(np.arange(array.shape[dim]), retained.numpy())
            array[(slice(None),) * dim + (removed,)] = 0
            count += len(removed)
        stored.CopyFrom(numpy_helper.from_array(array, stored.name))
    assert count > 0
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("name", SHAPES)
def test_half_of_every_group_is_removed(name: str, tmp_path: Path) -> None:
    """ONNX Runtime computes the same with the new file and with the masked original, for any number of samples."""
    program = gp.load(FILES / f"{name}.onnx")
    plan = gp.plan(program, ratio=0.5, recipe="magnitude")
    small = gp.apply(program, plan)
    assert small.count() < 0.6 * program.count()
    compared = dict(gp.save(small, output=tmp_path / "out"))
    assert compared["ONNX and masked original file"] < 1e-4
    before, after = (
        onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        for model in (masked(FILES / f"{name}.onnx", plan), str(tmp_path / "out/onnx/model.onnx"))
    )
    (given,) = after.get_inputs()
    assert given.name == before.get_inputs()[0].name
    for count in (1, 5):
        x = {given.name: numbers(count, *SHAPES[name], seed=count)}
        for result, expected in zip(after.run(None, x), before.run(None, x), strict=True):
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
