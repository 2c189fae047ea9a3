"""Products of rows with the matrix of their expert, in standard operators of ONNX."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from graphprune.support.packages import load

_NAME = "grouped_mm_fallback"


def translations() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """Translations of operators that torch.onnx does not know, for its `custom_translation_table`."""
    packet = getattr(torch.ops.transformers, _NAME, None)  # registered once a mixture of experts was captured or read
    return {} if packet is None else {packet.default: _grouped_product}


def _grouped_product(rows: Any, matrices: Any, ends: Any) -> Any:
    """``rows (s i), matrices (e i o), ends (e) -> (s o)``: expert j multiplies the rows before ``ends[j]``.

    Every row gathers the matrix of its expert: the index of the first end after it.
    """
    op: Any = load("onnxscript").opset18  # torch.onnx converts it to the opset of the file
    one = op.Constant(value_ints=[1])
    count = op.Squeeze(op.Shape(rows, start=0, end=1))
    zero, step = op.Constant(value_int=0), op.Constant(value_int=1)
    indices = op.Unsqueeze(op.Range(zero, count, step), one)
    passed = op.Cast(op.LessOrEqual(op.Unsqueeze(op.Cast(ends, to=7), op.Constant(value_ints=[0])), indices), to=7)
    expert = op.ReduceSum(passed, one, keepdims=0)
    return op.Squeeze(op.MatMul(op.Unsqueeze(rows, one), op.Gather(matrices, expert, axis=0)), one)
