"""ONNX graphs that are valid, and rare: they are cut and written as others are."""

from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import helper

import graphprune as gp
from graphprune.errors import LoadError
from tests.frontends.onnx_graphs import model, numbers, write


def test_unusual_but_valid_graphs(tmp_path: Path) -> None:
    """Nodes in any order, an input with a name of Python, one that is returned as it is."""
    nodes = [
        helper.make_node("Gemm", ["wide", "down"], ["y"], transB=1),
        helper.make_node("Relu", ["h"], ["wide"]),
        helper.make_node("Gemm", ["self", "up"], ["h"], transB=1),
    ]
    built = model(nodes, {"self": ["n", 4]}, ["y"], {"up": numbers(8, 4), "down": numbers(3, 8)})
    built.graph.output.append(built.graph.input[0])
    program = gp.load(write(tmp_path, built))
    compared = dict(
        gp.save(gp.apply(program, gp.plan(program, ratio=0.5, recipe="magnitude")), output=tmp_path / "out")
    )
    assert compared["ONNX and masked original file"] < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "out/onnx/model.onnx"), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == ["y", "self"]
    x = numbers(5, 4)
    assert (session.run(["self"], {"self": x})[0] == x).all()


@pytest.mark.slow
def test_padding_of_odd_sizes_is_written(tmp_path: Path) -> None:
    """Padding that depends on a dynamic size is rounded in the written file as in the first."""
    nodes = [
        helper.make_node("Conv", ["x", "up"], ["h"], auto_pad="SAME_UPPER", strides=[2]),
        helper.make_node("Conv", ["h", "down"], ["y"], auto_pad="SAME_LOWER", strides=[2]),
    ]
    program = gp.load(
        write(tmp_path, model(nodes, {"x": [2, 3, "n"]}, ["y"], {"up": numbers(8, 3, 3), "down": numbers(4, 8, 3)}))
    )
    compared = dict(
        gp.save(gp.apply(program, gp.plan(program, ratio=0.5, recipe="magnitude")), output=tmp_path / "out")
    )
    assert compared["ONNX and masked original file"] < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "out/onnx/model.onnx"), providers=["CPUExecutionProvider"])
    assert [session.run(None, {"x": numbers(2, 3, n)})[0].shape[2] for n in (7, 8, 9, 10)] == [2, 2, 3, 3]


@pytest.mark.parametrize("kind", ["sequence", "map"])
def test_an_output_that_is_no_tensor_is_refused(kind: str, tmp_path: Path) -> None:
    """Classifiers of scikit-learn have a sequence of maps as their output by default."""
    built = model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 4]}, ["y"], {})
    pairs = helper.make_map_type_proto(onnx.TensorProto.INT64, helper.make_tensor_type_proto(1, None))
    built.graph.output[0].type.CopyFrom(pairs if kind == "map" else helper.make_sequence_type_proto(pairs))
    with pytest.raises(LoadError, match=rf"output y is of type {kind}, expected a tensor of numbers; remove it"):
        gp.load(write(tmp_path, built))


def test_an_output_of_strings_is_refused(tmp_path: Path) -> None:
    built = model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 4]}, ["y"], {})
    built.graph.output[0].type.CopyFrom(helper.make_tensor_type_proto(onnx.TensorProto.STRING, None))
    with pytest.raises(LoadError, match="output y is of type STRING, expected a tensor of numbers"):
        gp.load(write(tmp_path, built))


@pytest.mark.parametrize("names", [('a"b\\', "a_b_", "..", 'out{0}"'), ("forward", "training", "self.x/0;y", "class")])
def test_names_that_python_cannot_hold(names: tuple[str, str, str, str], tmp_path: Path) -> None:
    """Quotes, separators and names of attributes: the new file has the names of the first, and is compared with it."""
    up, bias, down, output = names
    nodes = [
        helper.make_node("Gemm", ["x", up, bias], ["h"]),
        helper.make_node("Relu", ["h"], ["wide"]),
        helper.make_node("Gemm", ["wide", down], [output]),
    ]
    constants = {up: numbers(4, 8), bias: numbers(8), down: numbers(8, 3)}
    file = write(tmp_path, model(nodes, {"x": ["n", 4]}, [output], constants))
    result = gp.prune(file, recipe="magnitude", ratio=0.5, output=tmp_path / "out")
    assert result.report.errors["ONNX and masked original file"] < 1e-4
    assert gp.verify_folder(tmp_path / "out").checks
    graph = onnx.load(tmp_path / "out/onnx/model.onnx").graph
    assert {up, bias, down} <= {tensor.name for tensor in graph.initializer}
    assert [value.name for value in graph.output] == [output]
