"""Weight quantization of ONNX files to 8 or 4 bits, in blocks along the inputs; activations are not quantized."""

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
_BLOCKED_OPSET = 21  # the first opset with DequantizeLinear in blocks
_BLOCK = 32  # weights that share a scale
_INT8_PRODUCTS = 4  # accuracy level of kernels: activations are rounded to 8 bits by blocks


def least_opset(quant: str, *, standard: bool) -> int:
    """Opset that `quantize` needs."""
    return _BLOCKED_OPSET if standard and quant != "none" else 0


def quantize(model: ir.Model, quant: str, *, standard: bool) -> ir.Model:
    """Quantize the weights of matrix products to 8 or 4 bits, and those of embeddings to 8.

    Products that are graph outputs, such as logits, have 8 bits in any case. With `standard`, DequantizeLinear is put
    before each product, which every runtime supports; otherwise products become ONNX Runtime's MatMulNBits. 8 bits are
    symmetric; with 4 bits each block has a zero point.

    Raises:
        ExportError: if the model has no product with a weight matrix, or its opset lacks the operators.
    """
    if standard and model.opset_imports[""] < _BLOCKED_OPSET:
        raise ExportError(f"{quant} needs operators of opset {_BLOCKED_OPSET} or later; omit --opset")
    _fold_transposes(model)
    _quantize_embeddings(model)
    heads, inner = _products(model)
    if not heads and not inner:
        raise ExportError(f"the model has no product with a weight matrix to store in {quant}; use --quant none")
    stages = [(heads, 8), (inner, BITS[quant])]
    if standard:
        for nodes, bits in stages:
            for node in nodes:
                _dequantize_weight(model.graph, node, bits)
        return model
    proto = ir.to_proto(model)
    for nodes, bits in stages:
        if nodes:
            others = [str(node.name) for node in heads + inner if node not in nodes]
            proto = _as_matmul_nbits(proto, others, bits)
    return ir.from_proto(proto)


def _as_matmul_nbits(proto: Any, excluded: list[str], bits: int) -> Any:
    """Replace the products of a model, other than those `excluded`, by MatMulNBits."""
    library = load("onnxruntime.quantization.matmul_nbits_quantizer")
    config = library.DefaultWeightOnlyQuantConfig(
        block_size=_BLOCK, is_symmetric=bits == 8, accuracy_level=_INT8_PRODUCTS, op_types_to_quantize=("MatMul",),
        bits=bits,
    )  # fmt: skip
    quantizer = library.MatMulNBitsQuantizer(proto, nodes_to_exclude=excluded, algo_config=config)
    with quiet_exporters():
        quantizer.process()
    return quantizer.model.model


def _dequantize_weight(graph: ir.Graph, node: ir.Node, bits: int) -> None:
    """Replace the weight of a product, shape (inputs, outputs), by integers and DequantizeLinear."""
    weight: Any = node.inputs[1]
    integers, zero, scale = _quantized(weight.const_value.numpy(), bits)
    kind = ir.DataType.UINT4 if bits == 4 else ir.DataType.INT8
    tape = ir.tape.Tape()
    parts = [
        tape.initializer(ir.Tensor(array.astype(of.numpy()), dtype=of, name=f"{node.name}_{part}"))
        for array, of, part in ((integers, kind, "weight"), (scale, weight.dtype, "scale"), (zero, kind, "zero"))
    ]
    product = tape.op("DequantizeLinear", parts, {"axis": 0, "block_size": _BLOCK})
    for value in tape.initializers:
        graph.register_initializer(value)
    graph.insert_before(node, tape.nodes)
    node.replace_input_with(1, product)
    if not weight.uses():
        del graph.initializers[weight.name]


def _quantized(w: NDArray[Any], bits: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Integers, and for each block of inputs the zero point and the scale; symmetric with 8 bits."""
    padded = np.pad(w.astype(np.float32), ((0, -len(w) % _BLOCK), (0, 0)))
    blocks = padded.reshape(-1, _BLOCK, w.shape[1])
    low, high = blocks.min(1).clip(max=0), blocks.max(1).clip(min=0)
    minimum, maximum = (0, 15) if bits == 4 else (-127, 127)
    if bits == 8:
        high = np.maximum(high, -low)
        low = -high
    scale = np.maximum(high - low, 1e-12) / (maximum - minimum)
    zero = np.rint(minimum - low / scale)
    integers = np.rint(blocks / scale[:, None] + zero[:, None]).clip(minimum, maximum)
    return integers.reshape(-1, w.shape[1])[: len(w)], zero, scale


def _fold_transposes(model: ir.Model) -> None:
    """Fold transposes of weights: a weight transposed at run time, such as a tied head, looks like an activation."""
    onnxscript.optimizer.fold_constants(
        model, should_fold=lambda node: True if node.op_type == "Transpose" else None,
        output_size_limit=sys.maxsize,  # the default limit would not fold a tied head
    )  # fmt: skip


def _products(model: ir.Model) -> tuple[list[ir.Node], list[ir.Node]]:
    """Products with a weight matrix: those that are graph outputs, and all others."""
    products = [node for node in model.graph if node.op_type == "MatMul" and _is_weight_matrix(node.inputs[1])]
    heads = [node for node in products if node.outputs[0].is_graph_output()]
    return heads, [node for node in products if node not in heads]


def _quantize_embeddings(model: ir.Model) -> None:
    """Quantize the rows of embeddings to 8 bits with a scale each, which multiplies a row after the lookup."""
    for node in [node for node in model.graph if node.op_type == "Gather" and _is_weight_matrix(node.inputs[0])]:
        table, rows = node.inputs[0], node.inputs[1]
        assert table is not None and table.const_value is not None
        if node.attributes.get_int("axis", 0) != 0:
            continue
        _quantize_lookup(model.graph, node, rows, table.const_value.numpy())
        if not table.uses():
            del model.graph.initializers[str(table.name)]


def _quantize_lookup(graph: ir.Graph, node: ir.Node, rows: Any, table: NDArray[Any]) -> None:
    scale = np.maximum(np.abs(table).max(1, keepdims=True).astype(np.float32), 1e-12) / 127
    integers = np.rint(table / scale).astype(np.int8)
    name = f"{node.name}_rows"
    tape = ir.tape.Tape()
    quantized = tape.op("Gather", [tape.initializer(ir.tensor(integers, name=f"{name}_int8")), rows])
    scales = tape.op("Gather", [tape.initializer(ir.tensor(scale.astype(table.dtype), name=f"{name}_scale")), rows])
    kind = ir.DataType.from_numpy(table.dtype)
    dequantized = tape.op("Mul", [tape.op("Cast", [quantized], {"to": int(kind)}), scales])
    for value in tape.initializers:
        graph.register_initializer(value)
    ir.convenience.replace_nodes_and_values(graph, node, [node], list(tape.nodes), list(node.outputs), [dequantized])


def _is_weight_matrix(value: Any) -> bool:
    """Whether this is a matrix of floating-point weights."""
    constant = value.const_value if value is not None else None
    return constant is not None and len(constant.shape) == 2 and constant.dtype.is_floating_point()
