"""Nodes that are computed with numbers while the graph is captured: arithmetic of sizes, and of constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import SymFloat

from graphprune.frontends.onnx_import.onnx_values import (
    SMALL,
    NodeCall,
    Value,
    dtype_of,
    known,
    numbers_of,
    plain,
)  # fmt: skip
from graphprune.support.packages import onnx
from graphprune.support.packages import onnx_ir as ir

LARGEST = 1 << 22  # numbers of a constant that is computed once
_FAR = 2**31 - 1
_torch: Any = torch  # its functions of symbols have no types


class NotKnownError(Exception):
    """A node cannot be computed with numbers alone."""


def evaluate(call: NodeCall) -> tuple[Value, ...] | None:
    """Values of a node whose inputs are all numbers; None if it must run with tensors."""
    inputs = [None if value is None else known(value) for value in call.inputs]
    absent = [a is None and b is not None for a, b in zip(inputs, call.inputs, strict=True)]
    if any(absent) or not inputs or call.node.domain not in ("", "ai.onnx"):
        return None
    arrays = [array for array in inputs if array is not None]
    symbolic = any(array.dtype == object for array in arrays)
    if any(array.size > (SMALL if symbolic else LARGEST) for array in arrays):
        return None
    if (function := _BY_NAME.get(call.node.op_type)) is not None:
        try:
            return (plain(np.asarray(function(call, inputs))),)
        except NotKnownError:
            pass
    return None if symbolic else _reference(call, inputs)


def _reference(call: NodeCall, inputs: Sequence[np.ndarray | None]) -> tuple[Value, ...] | None:
    """Values by the reference implementation of ONNX."""
    node = ir.serde.serialize_node(call.node)
    names = [name if array is not None else "" for name, array in zip(node.input, inputs, strict=True)]
    if any(attribute.type in (5, 10) for attribute in node.attribute) or "Random" in node.op_type:
        return None  # subgraphs, and numbers drawn at random
    single = onnx.NodeProto()
    single.CopyFrom(node)
    single.input[:] = names
    values = [onnx.helper.make_tensor_value_info(name, 1, None) for name in dict.fromkeys(filter(None, names))]
    outputs = [onnx.helper.make_tensor_value_info(name, 1, None) for name in node.output if name]
    graph = onnx.helper.make_graph([single], "constant", values, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", call.opset)])
    feeds = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    try:
        with np.errstate(all="ignore"):
            results = iter(_run(model, feeds))
    except Exception:  # it implements most operators, not all; the others run with tensors
        return None
    return tuple(np.asarray(next(results)) if name else None for name in node.output)


def _run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[Any]:
    evaluator: Any = onnx.reference.ReferenceEvaluator
    results: list[Any] = evaluator(model).run(None, feeds)
    return results


def _elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(_: NodeCall, inputs: Sequence[np.ndarray]) -> Any:
        shape = np.broadcast_shapes(*(array.shape for array in inputs))
        wide = [np.broadcast_to(array, shape) for array in inputs]
        if not any(array.dtype == object for array in wide):
            raise NotKnownError  # plain numbers have types, which the reference implementation observes
        result = np.empty(shape, dtype=object)
        for place in np.ndindex(shape):
            result[place] = function(*(_item(array[place]) for array in wide))
        return result

    return apply


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _divide(a: Any, b: Any) -> Any:
    whole = not any(isinstance(side, float | SymFloat) for side in (a, b))
    return a // b if whole else a / b


def _cast(call: NodeCall, inputs: Sequence[np.ndarray]) -> np.ndarray:
    array, dtype = inputs[0], dtype_of(call.attribute("to"))
    if array.dtype != object:
        raise NotKnownError
    convert = _torch.sym_float if dtype.is_floating_point else _torch.sym_int
    result = np.empty(array.shape, dtype=object)
    for place in np.ndindex(array.shape):
        result[place] = convert(_item(array[place]))
    return result


def _gather(call: NodeCall, inputs: Sequence[np.ndarray]) -> np.ndarray:
    _require_plain(inputs[1])
    return np.take(inputs[0], inputs[1].astype(np.int64), axis=call.attribute("axis", 0))


def _require_plain(*arrays: np.ndarray | None) -> None:
    if any(array is not None and array.dtype == object for array in arrays):
        raise NotKnownError


def _slice(call: NodeCall, inputs: Sequence[np.ndarray | None]) -> np.ndarray:
    if call.opset < 10:
        starts, ends, axes, steps = (call.attribute(name) for name in ("starts", "ends", "axes", "steps"))
    else:
        _require_plain(*inputs[1:])
        starts, ends, axes, steps = [
            None if array is None else array.tolist() for array in [*inputs[1:], None, None][:4]
        ]
    array = inputs[0]
    assert array is not None
    places: dict[int, slice] = {}
    for i, axis in enumerate(axes or range(len(starts))):
        step = steps[i] if steps else 1
        end = None if ends[i] >= _FAR or ends[i] < -_FAR else ends[i]
        places[axis % array.ndim] = slice(starts[i], end, step)
    return array[tuple(places.get(dim, slice(None)) for dim in range(array.ndim))]


def _axes(call: NodeCall, inputs: Sequence[np.ndarray | None]) -> list[int] | None:
    if len(inputs) > 1 and inputs[1] is not None:
        return [int(axis) for axis in inputs[1].reshape(-1)]
    axes: list[int] | None = call.attribute("axes")
    return axes


def _unsqueeze(call: NodeCall, inputs: Sequence[np.ndarray]) -> np.ndarray:
    return np.expand_dims(inputs[0], tuple(_axes(call, inputs) or ()))


def _squeeze(call: NodeCall, inputs: Sequence[np.ndarray]) -> np.ndarray:
    axes = _axes(call, inputs)
    return np.squeeze(inputs[0], None if axes is None else tuple(axes))


def _reshape(_: NodeCall, inputs: Sequence[np.ndarray]) -> np.ndarray:
    _require_plain(inputs[1])
    shape = [inputs[0].shape[i] if n == 0 else int(n) for i, n in enumerate(inputs[1])]
    return inputs[0].reshape(shape)


def _reduce(function: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    def apply(call: NodeCall, inputs: Sequence[np.ndarray]) -> Any:
        if inputs[0].dtype != object or inputs[0].ndim > 1:
            raise NotKnownError
        return numbers_of([function(list(inputs[0].reshape(-1)))]).reshape(
            (1,) if call.attribute("keepdims", 1) else ()
        )

    return apply


def _where(_: NodeCall, inputs: Sequence[np.ndarray]) -> np.ndarray:
    _require_plain(inputs[0])
    return np.where(*inputs)


def _concat(call: NodeCall, inputs: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(inputs), axis=call.attribute("axis"))


def _expand(_: NodeCall, inputs: Sequence[np.ndarray]) -> np.ndarray:
    _require_plain(inputs[1])
    shape = np.broadcast_shapes(inputs[0].shape, tuple(inputs[1].tolist()))
    if math.prod(shape) > SMALL:
        raise NotKnownError
    return np.broadcast_to(inputs[0], shape)


def _constant_of_shape(call: NodeCall, inputs: Sequence[np.ndarray]) -> np.ndarray:
    _require_plain(inputs[0])
    shape, value = tuple(inputs[0].tolist()), call.attribute("value")
    if math.prod(shape) > SMALL:
        raise NotKnownError
    return np.full(shape, 0.0 if value is None else value.numpy().reshape(-1)[0]).astype(
        np.float32 if value is None else value.numpy().dtype
    )


def _same(_: NodeCall, inputs: Sequence[np.ndarray]) -> np.ndarray:
    return inputs[0]


def _shape(call: NodeCall, inputs: Sequence[np.ndarray]) -> np.ndarray:
    return np.array(inputs[0].shape[slice(call.attribute("start", 0), call.attribute("end"))], dtype=np.int64)


_BY_NAME: dict[str, Callable[..., Any]] = {
    "Identity": _same, "Shape": _shape, "Gather": _gather, "Slice": _slice, "Concat": _concat, "Where": _where,
    "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Reshape": _reshape, "Expand": _expand, "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "Add": _elementwise(lambda a, b: a + b), "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b), "Div": _elementwise(_divide), "Mod": _elementwise(lambda a, b: a % b),
    "Neg": _elementwise(lambda a: -a), "Abs": _elementwise(abs),
    "Floor": _elementwise(lambda a: _torch.sym_float(math.floor(a))),
    "Ceil": _elementwise(lambda a: _torch.sym_float(math.ceil(a))),
    "Sqrt": _elementwise(lambda a: _torch.sym_float(a) ** 0.5),
    "Min": _elementwise(_torch.sym_min), "Max": _elementwise(_torch.sym_max),
    "Equal": _elementwise(lambda a, b: bool(a == b)), "Greater": _elementwise(lambda a, b: bool(a > b)),
    "Less": _elementwise(lambda a, b: bool(a < b)), "Not": _elementwise(lambda a: not a),
    "GreaterOrEqual": _elementwise(lambda a, b: bool(a >= b)), "LessOrEqual": _elementwise(lambda a, b: bool(a <= b)),
    "And": _elementwise(lambda a, b: a and b), "Or": _elementwise(lambda a, b: a or b),
    "ReduceProd": _reduce(math.prod), "ReduceSum": _reduce(sum), "ReduceMax": _reduce(max), "ReduceMin": _reduce(min),
}  # fmt: skip
