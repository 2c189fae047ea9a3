"""Programs and inputs in double precision, in which differences are not due to rounding."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx.node import map_aggregate

from graphprune.ir.program import Inputs, Program, copy_graph
from graphprune.ir.weights import DerivedWeights

WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}


@dataclass(frozen=True)
class _Doubled(DerivedWeights):
    """Weights of `base`, in double precision where they are in single."""

    def __getitem__(self, name: str) -> Tensor:
        return _wide(self.base[name])


def program(single: Program) -> Program:
    """Convert a program to compute in double precision wherever it computes in single, with the same weights.

    Graphs inside of operators (loops, branches) are unchanged.
    """
    graph = copy_graph(single.graph)
    for node in graph.nodes:
        node.args, node.kwargs = map_aggregate(node.args, _type), map_aggregate(node.kwargs, _type)
    return replace(single, graph=graph, weights=_Doubled(single.weights))


def inputs(single: Inputs) -> Inputs:
    """Convert inputs to double precision."""
    converted: Inputs = pytree.tree_map_only(Tensor, _wide, single)
    return converted


@contextmanager
def default() -> Iterator[None]:
    """Make double precision the default dtype in the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(WIDER.get(tensor.dtype, tensor.dtype))


def _type(leaf: Any) -> Any:
    return WIDER.get(leaf, leaf) if isinstance(leaf, torch.dtype) else leaf
