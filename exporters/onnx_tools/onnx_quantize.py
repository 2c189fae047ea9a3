"""Weights of ONNX files in 8 or 4 bits, in blocks along the inputs; what is computed between them stays as it is."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import ExportError
from graphprune.execution.module_state import quiet_exporters
from graphprune.support.packages import load, onnxscript
from graphprune.support.packages import onnx_ir as ir

BITS = {"int8": 8, "int4": 4}
_BLOCKED = 21  # the first opset that dequantises in blocks
_BLOCK = 32  # one scale for so many weights
_INT8_PRODUCTS = 4  # how exactly kernels multiply: with activations rounded to 8 bits, a block at a time


def quantise(model: ir.Model, quant: str, *, standard: bool) -> ir.Model:
    """The model with weights of matrix products in 8 or 4 bits, and tables of embeddings in 8.

    With 4 bits the product that makes an output keeps 8. `standard` writes DequantizeLinear before each product, which
    every runtime reads; otherwise the products are those of ONNX Runtime (MatMulNBits). Symmetric in 8 bits; in 4 bits
    each block has a zero point.

    Raises:
        ExportError: if the model has no product with a matrix of weights, or its opset no such operators.
    """
    if standard and model.opset_imports[""] < _BLOCKED:
        raise ExportError(f"{quant} takes operators of opset {_BLOCKED} or later; leave --opset out")
    _fold_transposed(model)
    _embeddings(model)
    heads, inner = _products(model)
    if not heads and not inner:
        raise ExportError(
            f"the model multiplies by no matrix of weights, which is what can be kept in {quant}; use --quant none"
        )
    stages = [(heads, 8), (inner, BITS[quant])]
    if standard:
        for nodes, bits in stages:
            for node in nodes:
                _dequantised(model.graph, node, bits)
        return model
    proto = ir.to_proto(model)
    for nodes, bits in stages:
        if nodes:
            others = [str(node.name) for node in heads + inner if node not in nodes]
            proto = _blocked(proto, others, bits)
    return ir.from_proto(proto)


def _blocked(proto: Any, without: list[str], bits: int) -> Any:
    """The model with its products as MatMulNBits, but for some."""
    library = load("onnxruntime.quantization.matmul_nbits_quantizer")
    config = library.DefaultWeightOnlyQuantConfig(
        block_size=_BLOCK, is_symmetric=bits == 8, accuracy_level=_INT8_PRODUCTS, op_types_to_quantize=("MatMul",),
        bits=bits,
    )  # fmt: skip
    quantizer = library.MatMulNBitsQuantizer(proto, nodes_to_exclude=without, algo_config=config)
    with quiet_exporters():
        quantizer.process()
    return quantizer.model.model


def _dequantised(graph: ir.Graph, node: ir.Node, bits: int) -> None:
    """The product with its weight, shape (inputs, outputs), as integers of so many bits."""
    weight: Any = node.inputs[1]
    whole, zero, scale = _rounded(weight.const_value.numpy(), bits)
    kind = ir.DataType.UINT4 if bits == 4 else ir.DataType.INT8
    tape = ir.tape.Tape()
    parts = [
        tape.initializer(ir.Tensor(array.astype(of.numpy()), dtype=of, name=f"{node.name}_{part}"))
        for array, of, part in ((whole, kind, "weight"), (scale, weight.dtype, "scale"), (zero, kind, "zero"))
    ]
    made = tape.op("DequantizeLinear", parts, {"axis": 0, "block_size": _BLOCK})
    for value in tape.initializers:
        graph.register_initializer(value)
    graph.insert_before(node, tape.nodes)
    node.replace_input_with(1, made)
    if not weight.uses():
        del graph.initializers[weight.name]


def _rounded(w: NDArray[Any], bits: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Integers, and by block of inputs the one that stands for zero and the step between two; in 8 bits symmetric."""
    padded = np.pad(w.astype(np.float32), ((0, -len(w) % _BLOCK), (0, 0)))
    blocks = padded.reshape(-1, _BLOCK, w.shape[1])
    low, high = blocks.min(1).clip(max=0), blocks.max(1).clip(min=0)
    least, most = (0, 15) if bits == 4 else (-127, 127)
    if bits == 8:
        high = np.maximum(high, -low)
        low = -high
    scale = np.maximum(high - low, 1e-12) / (most - least)
    zero = np.rint(least - low / scale)
    whole = np.rint(blocks / scale[:, None] + zero[:, None]).clip(least, most)
    return whole.reshape(-1, w.shape[1])[: len(w)], zero, scale


def _fold_transposed(model: ir.Model) -> None:
    """A weight that is transposed when it runs, as that of a tied head, could not be told from an activation."""
    onnxscript.optimizer.fold_constants(
        model, should_fold=lambda node: True if node.op_type == "Transpose" else None,
        output_size_limit=sys.maxsize,  # that of the library leaves a head which is also the table of embeddings
    )  # fmt: skip


def _products(model: ir.Model) -> tuple[list[ir.Node], list[ir.Node]]:
    """The products with a matrix of weights: those that make outputs, and all others."""
    found = [node for node in model.graph if node.op_type == "MatMul" and _matrix(node.inputs[1])]
    heads = [node for node in found if node.outputs[0].is_graph_output()]
    return heads, [node for node in found if node not in heads]


def _embeddings(model: ir.Model) -> None:
    """Rows of tables as 8-bit integers with a scale each; rows are multiplied after they were looked up."""
    for node in [node for node in model.graph if node.op_type == "Gather" and _matrix(node.inputs[0])]:
        table, rows = node.inputs[0], node.inputs[1]
        assert table is not None and table.const_value is not None
        if node.attributes.get_int("axis", 0) != 0:
            continue
        _look_up(model.graph, node, rows, table.const_value.numpy())
        if not table.uses():
            del model.graph.initializers[str(table.name)]


def _look_up(graph: ir.Graph, node: ir.Node, rows: Any, table: NDArray[Any]) -> None:
    scale = np.maximum(np.abs(table).max(1, keepdims=True).astype(np.float32), 1e-12) / 127
    whole = np.rint(table / scale).astype(np.int8)
    name = f"{node.name}_rows"
    tape = ir.tape.Tape()
    taken = tape.op("Gather", [tape.initializer(ir.tensor(whole, name=f"{name}_int8")), rows])
    scales = tape.op("Gather", [tape.initializer(ir.tensor(scale.astype(table.dtype), name=f"{name}_scale")), rows])
    kind = ir.DataType.from_numpy(table.dtype)
    made = tape.op("Mul", [tape.op("Cast", [taken], {"to": int(kind)}), scales])
    for value in tape.initializers:
        graph.register_initializer(value)
    ir.convenience.replace_nodes_and_values(graph, node, [node], list(tape.nodes), list(node.outputs), [made])


def _matrix(value: Any) -> bool:
    """Is this a matrix of floating-point weights?"""
    constant = value.const_value if value is not None else None
    return constant is not None and len(constant.shape) == 2 and constant.dtype.is_floating_point()
