# ruff: noqa: E501 - the tables have a line for each constant or case
"""ONNX models written by hand, for tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
TYPES = {np.dtype("float32"): TensorProto.FLOAT, np.dtype("int64"): TensorProto.INT64, np.dtype("bool"): TensorProto.BOOL,
         np.dtype("int32"): TensorProto.INT32, np.dtype("float16"): TensorProto.FLOAT16}  # fmt: skip


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Random numbers of a shape."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray],
    opset: int = 17,
    kinds: Mapping[str, int] | None = None,
    **more: Any,
) -> onnx.ModelProto:
    """Model of a graph; inputs are of floats unless `kinds` has another type."""
    known = kinds or {}
    graph = helper.make_graph(
        list(nodes), "graph",
        [helper.make_tensor_value_info(name, known.get(name, TensorProto.FLOAT), shape) for name, shape in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid(*each) for each in (("", opset), (MICROSOFT, 1), ("ai.onnx.ml", 3))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **more)


def write(folder: Path, written: onnx.ModelProto, name: str = "model.onnx") -> Path:
    """File of a model."""
    onnx.save(written, folder / name)
    return folder / name


def convolutional() -> onnx.ModelProto:
    """Two convolutions with a batch norm, and a linear layer, with names of sizes and metadata.

    A constant and the output have names that torch gives to values of its own.
    """
    constants = {
        "stem/kernel": numbers(8, 3, 3, 3, seed=1), "stem/bias": numbers(8, seed=2), "norm/gamma": np.abs(numbers(8, seed=3)),
        "norm/beta": numbers(8, seed=4), "norm/mean": numbers(8, seed=5), "norm/variance": np.abs(numbers(8, seed=6)),
        "deep.kernel": numbers(6, 8, 3, 3, seed=7), "head.weight": numbers(4, 6, seed=8), "relu": numbers(4, seed=9),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "stem/kernel", "stem/bias"], ["a"], "stem", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", "norm/gamma", "norm/beta", "norm/mean", "norm/variance"], ["b"], "norm"),
        node("Relu", ["b"], ["c"], "relu"),
        node("Conv", ["c", "deep.kernel"], ["d"], "deep", strides=[2, 2]),
        node("Relu", ["d"], ["e"], "relu2"),
        node("GlobalAveragePool", ["e"], ["f"], "pool"),
        node("Flatten", ["f"], ["g"], "flat"),
        node("Gemm", ["g", "head.weight", "relu"], ["linear"], "head", transB=1),
    ]
    built = model(
        nodes, {"image": ["images", 3, 9, 9]}, ["linear"], constants, producer_name="hand", doc_string="two layers"
    )
    built.graph.output[0].CopyFrom(helper.make_tensor_value_info("linear", TensorProto.FLOAT, ["images", 4]))
    built.metadata_props.add(key="labels", value="a,b,c,d")
    return built


def attentive() -> onnx.ModelProto:
    """An embedding and attention whose heads are made by shapes that are computed in the graph."""
    node = helper.make_node
    constants = {
        "table": numbers(20, 12, seed=1), "q": numbers(12, 12, seed=2), "k": numbers(12, 12, seed=3),
        "v": numbers(12, 12, seed=4), "o": numbers(12, 12, seed=5), "up": numbers(12, 10, seed=6),
        "up_bias": numbers(10, seed=7), "down": numbers(10, 5, seed=8), "zero": np.array(0), "one": np.array(1),
        "first": np.array([0]), "heads": np.array([3]), "size": np.array([4]), "width": np.array([12]),
        "scale": np.array(0.5, dtype=np.float32),
    }  # fmt: skip
    nodes = [
        node("Gather", ["table", "ids"], ["x"], "embed"),
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"]),
        node("Gather", ["shape", "one"], ["length"]),
        node("Unsqueeze", ["batch", "first"], ["batch1"]),
        node("Unsqueeze", ["length", "first"], ["length1"]),
        node("Concat", ["batch1", "length1", "heads", "size"], ["split"], axis=0),
        node("Concat", ["batch1", "length1", "width"], ["joined"], axis=0),
    ]
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", ["x", name], [f"{name}1"], f"{name}_proj"),
            node("Reshape", [f"{name}1", "split"], [f"{name}2"]),
            node("Transpose", [f"{name}2"], [f"{name}3"], perm=order),
        ]
    nodes += [
        node("MatMul", ["q3", "k3"], ["scores"]),
        node("Mul", ["scores", "scale"], ["scaled"]),
        node("Softmax", ["scaled"], ["shares"], axis=-1),
        node("MatMul", ["shares", "v3"], ["mixed"]),
        node("Transpose", ["mixed"], ["mixed1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["mixed1", "joined"], ["mixed2"]),
        node("MatMul", ["mixed2", "o"], ["attended"]),
        node("MatMul", ["attended", "up"], ["wide"]),
        node("Add", ["wide", "up_bias"], ["biased"]),
        node("Relu", ["biased"], ["active"]),
        node("MatMul", ["active", "down"], ["logits"]),
    ]
    return model(nodes, {"ids": ["rows", "tokens"]}, ["logits"], constants, kinds={"ids": TensorProto.INT64})
