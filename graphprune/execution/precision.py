"""Programs and inputs in a wider floating-point type, in which differences are smaller or not due to rounding."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx.node import map_aggregate

from graphprune.ir.program import Inputs, Program, copy_graph
from graphprune.ir.weights import DerivedWeights

Types = Mapping[torch.dtype, torch.dtype]
#: Half precision to single, in which fewer choices, as between experts, are decided by rounding.
SINGLE: Types = {torch.bfloat16: torch.float32, torch.float16: torch.float32}
DOUBLE: Types = {torch.float32: torch.float64, torch.complex64: torch.complex128}
#: Double precision to single, to measure rounding.
REDUCED: Types = {wide: single for single, wide in DOUBLE.items()}


@dataclass(frozen=True)
class _Converted(DerivedWeights):
    """Weights of `base`, with other types."""

    types: Types

    def __getitem__(self, name: str) -> Tensor:
        return _converted(self.base[name], self.types)


def program(original: Program, types: Types) -> Program:
    """Convert a program to compute in other types, with the values of the same weights.

    Graphs inside of operators (loops, branches) are unchanged.
    """
    graph = copy_graph(original.graph)
    for node in graph.nodes:
        node.args, node.kwargs = (map_aggregate(a, lambda leaf: _type(leaf, types)) for a in (node.args, node.kwargs))
        if torch.float64 in types.values() and node.op == "call_function":
            node.target = _IN_DOUBLE.get(node.target, node.target)
    weights = _Converted(original.weights, types)
    return replace(original, graph=graph, weights=weights, inputs=inputs(original.inputs, types))


def inputs(original: Inputs, types: Types) -> Inputs:
    """Convert inputs to other types."""
    converted: Inputs = pytree.tree_map_only(Tensor, lambda tensor: _converted(tensor, types), original)
    return converted


def uses(program: Program, types: Types) -> bool:
    """Whether a value of the program has one of these types."""
    values = (node.meta.get("val") for node in program.graph.nodes)
    return any(isinstance(value, Tensor) and value.dtype in types for value in values)


@contextmanager
def default_double(enabled: bool = True) -> Iterator[None]:
    """Make double precision the default dtype in the block, if enabled."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if enabled else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _converted(tensor: Tensor, types: Types) -> Tensor:
    return tensor.to(types.get(tensor.dtype, tensor.dtype))


def _type(leaf: Any, types: Types) -> Any:
    return types.get(leaf, leaf) if isinstance(leaf, torch.dtype) else leaf


def _grouped_product(x: Tensor, weight: Tensor, offsets: Tensor, *_: Any, **__: Any) -> Tensor:
    """Product of consecutive rows of `x` (s, i), up to each offset, with a matrix of `weight` (e, i, o)."""
    output = x.new_zeros(x.shape[0], weight.shape[2])
    starts = [0, *offsets.tolist()[:-1]]
    for start, end, matrix in zip(starts, offsets.tolist(), weight, strict=True):
        output[start:end] = x[start:end] @ matrix
    return output


#: Operators whose kernels have no double precision.
_IN_DOUBLE: dict[Any, Callable[..., Any]] = {torch.ops.aten._grouped_mm.default: _grouped_product}
