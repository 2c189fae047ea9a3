"""Indexing: the indexed axis is pinned, or cut together with the axis into which the indices point."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphprune.axes.algebra import UNIT, Misaligned
from graphprune.axes.rule import Dims, Example, Flow, Rule, Zeros
from graphprune.axes.rule_helpers import between_layers, canonical_dim, indexed_dims, literal, unify_prefix
from graphprune.passes.operators import RULES, rule

aten = torch.ops.aten


@rule(aten.index.Tensor)
class Index(Rule):
    """Indexing of some dimensions by tensors or masks; the others pass through."""

    zeros = Zeros.MOVED
    selects = (1,)
    summands = (0,)
    degree = 1.0

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        before, index, after = indexed_dims(flow, flow.dims(node.args[0]), literal(node, 1))
        return *before, *index, *after

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y[:, torch.tensor([3, 1, 1])])
        yield between_layers(lambda y: y[:, torch.tensor([3, 1])][torch.tensor([0, 1]), :, torch.tensor([[3], [1]])], 2)
        yield between_layers(lambda y: y[y[..., 0].abs() < 9] * y[0, 0])


@rule(aten.gather.default)
class Gather(Rule):
    """Indexing of one dimension, with an index for every position of the others."""

    zeros = Zeros.MOVED
    selects = (2,)
    degree = 1.0

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims, index = flow.dims(node.args[0]), flow.dims(node.args[2])
        if not dims:
            raise Misaligned("a number is gathered")
        dim = canonical_dim(literal(node, 1), len(dims))
        flow.look_up(dims[dim], node.args[2])
        for i in set(range(len(dims))) - {dim}:
            unify_prefix(flow, dims[i], index[i])
        return index

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y.gather(1, torch.tensor([3, 1, 1])[:, None].expand(len(y), 3, 8)))
        yield Example(_Sorted(), (torch.randn(3, 6),))


@rule(aten.index_select.default)
class IndexSelect(Rule):
    """Indexing of one dimension by a vector."""

    zeros = Zeros.MOVED
    selects = (2,)
    degree = 1.0

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        dim = canonical_dim(literal(node, 1), len(dims))
        flow.look_up(dims[dim], node.args[2])
        index = flow.dims(node.args[2]) or (UNIT,)
        return *dims[:dim], *index, *dims[dim + 1 :]

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y.index_select(1, torch.tensor([3, 1, 1])))


class CountedByData(Rule):
    """Operators whose number of outputs depends on the data."""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        raise Misaligned("the number of outputs depends on the data")

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y * y.nonzero().sum())


RULES.register(
    aten.nonzero.default, aten.masked_select.default, aten.bincount.default, aten._unique2.default,
    aten.unique_consecutive.default, aten.unique_dim.default,
)(CountedByData())  # fmt: skip


class _Sorted(nn.Module):
    """An example: the positions with the greatest gates, gathered for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.b = nn.Linear(6, 20), nn.Linear(6, 5), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        best = self.gate(x).topk(3).indices
        y = self.a(x).view(-1, 5, 4).gather(1, best[:, :, None].expand(-1, -1, 4))
        return self.b(torch.relu(y))
