"""Gated linear units: one half of a dimension gates the other."""

from collections.abc import Iterator

import torch
from torch import fx, nn

from graphprune.axes.algebra import split_axis
from graphprune.axes.rule import Dims, Example, Flow, Rule
from graphprune.axes.rule_helpers import argument, canonical_dim
from graphprune.passes.operators import rule


@rule(torch.ops.aten.glu.default)
class GatedLinearUnit(Rule):
    """The first half of a dimension, gated by the second."""

    rowwise = True

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = list(flow.dims(node.args[0]))
        dim = canonical_dim(argument(node, 1, "dim", -1), len(dims))
        half = dims[dim].size // 2
        first, second = split_axis(dims[dim], [half, half])
        flow.unify(first, second)
        dims[dim] = first
        return tuple(dims)

    def examples(self) -> Iterator[Example]:
        yield Example(nn.Sequential(nn.Linear(6, 16), nn.GLU(), nn.Linear(8, 2)), (torch.randn(3, 6),))
        yield Example(nn.Sequential(nn.Conv1d(3, 16, 1), nn.GLU(1), nn.Conv1d(8, 2, 1)), (torch.randn(2, 3, 6),))
