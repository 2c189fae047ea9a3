"""How many numbers a file multiplies by its weights, for one token or one image."""

from math import prod
from pathlib import Path
from typing import Any

import onnx

_PASSED = ("Transpose", "DequantizeLinear", "Cast", "Identity", "Reshape")  # between a weight and its product


def products(path: Path) -> int:
    """Multiplications by weights: of each product once, of a convolution at every place of its output."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False))
    graph = model.graph
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in _PASSED and node.input[0] in sizes:
            sizes[node.output[0]] = sizes[node.input[0]]
    shapes = {value.name: _shape(value) for value in [*graph.value_info, *graph.output]}
    return sum(_of(node, sizes, shapes) for node in graph.node)


def _of(node: Any, sizes: dict[str, tuple[int, ...]], shapes: dict[str, list[int]]) -> int:
    if node.op_type == "MatMulNBits":
        given = {attribute.name: attribute.i for attribute in node.attribute}
        return int(given["K"] * given["N"])
    weight = next((sizes[name] for name in node.input[1:2] if name in sizes), ())
    if node.op_type == "Conv":
        return prod(weight) * prod(shapes[node.output[0]][2:])
    return prod(weight) if node.op_type in ("MatMul", "Gemm", "FusedMatMul") and weight else 0


def _shape(value: Any) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]
