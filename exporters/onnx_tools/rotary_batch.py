"""Rotary tables of one row, repeated for every text of a batch."""

from __future__ import annotations

from graphprune.support.packages import onnx_ir as ir

_ROTARY = "RotaryEmbedding"
_BATCH = 3  # inputs without position ids: then the tables have a batch


def repeat_tables(model: ir.Model) -> None:
    """Expand the cosines and sines of rotary embeddings to the batch of what they rotate, in place.

    Positions that a model counts itself are the same for every text, so that its tables have one row. PyTorch
    broadcasts it; the operator of ONNX, which torch.onnx puts in the place of the products, does not.
    """
    for node in list(model.graph):
        if node.op_type == _ROTARY and len(node.inputs) == _BATCH and _batch(node.inputs[0]) != 1:
            _repeat(model.graph, node)


def _batch(value: ir.Value | None) -> object:
    return value.shape[0] if value is not None and value.shape is not None else None


def _repeat(graph: ir.Graph, node: ir.Node) -> None:
    """Insert the expansion of both tables before a node."""
    tape = ir.tape.Tape()
    batch = tape.op("Shape", [node.inputs[0]], {"start": 0, "end": 1})
    ones = tape.op("Constant", [], {"value_ints": [1, 1]})
    size = tape.op("Concat", [batch, ones], {"axis": 0})
    tables = [tape.op("Expand", [table, size]) for table in node.inputs[1:]]
    graph.insert_before(node, tape.nodes)
    for index, table in enumerate(tables, 1):
        node.replace_input_with(index, table)
