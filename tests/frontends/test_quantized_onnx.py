"""ONNX files that ONNX Runtime quantized become floating-point programs on request, or are refused by name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

import graphprune as gp
from graphprune.errors import LoadError
from graphprune.execution.output_comparison import difference
from tests.frontends.onnx_graphs import MICROSOFT, attentive, convolutional, model, numbers, write

Quantize = Callable[[Path, Path], None]
IMAGES = numbers(4, 3, 9, 9, seed=20)
IDS = np.random.default_rng(0).integers(0, 20, (2, 6))


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.batches = iter([{"image": IMAGES}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def by_range(quant_format: QuantFormat, **options: bool) -> Quantize:
    return lambda file, out: quantize_static(str(file), str(out), _Images(), quant_format=quant_format, **options)


def while_running(kind: QuantType, **options: bool) -> Quantize:
    return lambda file, out: quantize_dynamic(str(file), str(out), weight_type=kind, **options)


CASES: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, np.ndarray], Quantize]] = {
    "bounds of activations": (convolutional, {"image": IMAGES}, by_range(QuantFormat.QDQ)),
    "bounds, weights by channel": (convolutional, {"image": IMAGES}, by_range(QuantFormat.QDQ, per_channel=True)),
    "convolutions of integers": (convolutional, {"image": IMAGES}, while_running(QuantType.QUInt8)),
    "products of integers": (attentive, {"ids": IDS}, while_running(QuantType.QInt8)),
    "products, weights by channel": (attentive, {"ids": IDS}, while_running(QuantType.QInt8, per_channel=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_quantized_file_computes_without_rounding_of_activations(case: str, tmp_path: Path) -> None:
    """Its outputs are close to those of the file, also where the bounds of codes are all that is left of a ReLU."""
    build, feeds, quantize = CASES[case]
    file, quantized = write(tmp_path, build()), tmp_path / "quantized.onnx"
    quantize(file, quantized)
    (expected,) = onnxruntime.InferenceSession(str(quantized), providers=["CPUExecutionProvider"]).run(None, feeds)
    program = gp.load(quantized, dequantize=True)
    (output,) = program.module()(**{name: torch.from_numpy(array) for name, array in feeds.items()}).values()
    assert difference(torch.from_numpy(expected), output.detach()).relative < 0.2
    sizes = {group.size for group in gp.analyze(gp.load(file)).groups}
    assert {group.size for group in gp.analyze(program).groups} == sizes
    small = gp.apply(program, gp.plan(program, ratio=0.5, recipe="magnitude"))
    compared = dict(gp.save(small, output=tmp_path / "out"))
    assert compared["ONNX and graph"] < 1e-4 and small.count() < program.count()


def test_operators_of_rounded_activations_are_refused(tmp_path: Path) -> None:
    """Asking for floating-point numbers is no way out there, and is not named as one."""
    file = write(tmp_path, convolutional())
    by_range(QuantFormat.QOperator)(file, tmp_path / "quantized.onnx")
    with pytest.raises(LoadError, match=r"operator QLinearConv.*take the file before it was quantized") as refusal:
        gp.load(tmp_path / "quantized.onnx")
    assert "dequantize=True" not in str(refusal.value)


def test_a_packed_weight_is_cut(tmp_path: Path) -> None:
    """The file with packed numbers cannot be masked: a warning names that, and it is no fault."""
    constants = {
        "packed": np.random.default_rng(0).integers(0, 256, (16, 1, 16), dtype=np.uint8),
        "scales": numbers(16),
    }
    nodes = [
        helper.make_node("MatMulNBits", ["x", *constants], ["h"], domain=MICROSOFT, K=32, N=16, bits=4, block_size=32),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("MatMul", ["a", "down"], ["y"]),
    ]
    file = write(tmp_path, model(nodes, {"x": ["n", 32]}, ["y"], {**constants, "down": numbers(16, 3)}))
    program = gp.load(file, dequantize=True)
    small = gp.apply(program, gp.plan(program, ratio=0.5, recipe="magnitude"))
    compared = dict(gp.save(small, output=tmp_path / "out"))
    assert small.shapes()["packed"] == (32, 8) and compared["ONNX and graph"] < 1e-4
    assert "ONNX and masked original file" not in compared


def test_half_precision_between_inputs_and_outputs_in_single(tmp_path: Path) -> None:
    """The outputs are as coarse as the weights through which they were computed."""
    built = convert_float_to_float16(convolutional(), keep_io_types=True)
    program = gp.load(write(tmp_path, built))
    small = gp.apply(program, gp.plan(program, ratio=0.5, recipe="magnitude"))
    compared = dict(gp.save(small, output=tmp_path / "out"))
    assert compared["ONNX and masked original file"] < 1e-2
    session = onnxruntime.InferenceSession(str(tmp_path / "out/onnx/model.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": IMAGES})[0].dtype == np.float32
