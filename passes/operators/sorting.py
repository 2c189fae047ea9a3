"""Operators that sort a dimension or select from it by value: their results may be indices into it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphprune.axes.algebra import prime
from graphprune.axes.rule import Dims, Example, Flow, Rule, Zeros
from graphprune.axes.rule_helpers import (
    argument,
    between_layers,
    canonical_dim,
    canonical_dims,
    literal,
    reduced_dims,
    size_hint,
)
from graphprune.passes.operators import RULES, rule

aten = torch.ops.aten


@rule(aten.topk.default)
class TopK(Rule):
    """The greatest values along a dimension, and their indices: a cut of it leaves fewer candidates."""

    zeros = Zeros.MOVED

    def axes(self, flow: Flow, node: fx.Node) -> list[Dims]:
        dims, count = flow.dims(node.args[0]), size_hint(literal(node, 1))
        dim = canonical_dim(argument(node, 2, "dim", -1), len(dims))
        flow.mark_inexact(dims[dim], "the greatest values are selected along it")
        flow.require_width(dims[dim], count)
        flow.share_selection(dims, [dims[dim]])
        flow.mark_indices(node, dims[dim], output=1)
        selected = *dims[:dim], prime(count, "the greatest values are selected along it"), *dims[dim + 1 :]
        return [selected, selected]

    def examples(self) -> Iterator[Example]:
        yield Example(_Routed(), (torch.randn(7, 6),))
        yield between_layers(lambda y: y.topk(2, dim=1).values.sum(1, keepdim=True))


class Sort(Rule):
    """The sorted values of a dimension, and their original indices."""

    zeros = Zeros.MOVED

    def axes(self, flow: Flow, node: fx.Node) -> list[Dims] | Dims:
        dims = flow.dims(node.args[0])
        several = isinstance(node.meta["val"], (list, tuple))
        dim = canonical_dim(self.dim(node), len(dims)) if dims else 0
        for axis in dims[dim : dim + 1]:
            flow.pin(axis, "it is sorted")
            flow.share_selection(dims, [axis])
            flow.mark_indices(node, axis, output=int(several))
        return [dims, dims] if several else dims

    def dim(self, node: fx.Node) -> int:
        """The dimension, whose argument position depends on the overload."""
        stable = node.target in (aten.sort.stable, aten.argsort.stable)
        dim: int = argument(node, 2 if stable else 1, "dim", -1)
        return dim

    def examples(self) -> Iterator[Example]:
        yield between_layers(
            lambda y: y.sort(1).values + y[0, :, 0].argsort()[:, None] * y.sort(dim=1, stable=True).values
        )


RULES.register(aten.sort.default, aten.sort.stable, aten.argsort.default, aten.argsort.stable)(Sort())


@rule(aten.max.dim, aten.min.dim)
class Extreme(Rule):
    """The greatest or least value along a dimension, and its index."""

    zeros = Zeros.MOVED

    def axes(self, flow: Flow, node: fx.Node) -> list[Dims]:
        dims = flow.dims(node.args[0])
        dim = canonical_dim(literal(node, 1), len(dims))
        flow.mark_inexact(dims[dim], "its maximum or minimum is taken here")
        flow.mark_indices(node, dims[dim], output=1)
        return [reduced_dims(dims, [dim], argument(node, 2, "keepdim", False))] * 2

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y - y.max(2, keepdim=True).values * y.min(1, keepdim=True).values)
        yield between_layers(lambda y: y * y.max(2).indices[:, :, None])


@rule(aten.argmax.default, aten.argmin.default)
class ArgExtreme(Rule):
    """The index of the greatest or least value along a dimension, or in the flattened tensor."""

    zeros = Zeros.LOST

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        dim = argument(node, 1, "dim")
        reduced = canonical_dims(dim, len(dims))
        for i in reduced:
            flow.mark_inexact(dims[i], "its maximum or minimum is taken here")
            if dim is None:
                flow.pin(dims[i], "its maximum or minimum is taken over all dimensions")
        if dim is not None:
            flow.mark_indices(node, dims[reduced[0]])
        return reduced_dims(dims, reduced, argument(node, 2, "keepdim", False))

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y + y.gather(2, y.argmax(2, keepdim=True)) + y.argmin())


@rule(aten.diff.default)
class Difference(Rule):
    """Differences of neighbors along a dimension."""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims, new = flow.dims(node.args[0]), flow.fresh(node, "neighbors are subtracted along it")
        dim = canonical_dim(argument(node, 2, "dim", -1), len(dims))
        for value in (node.args[0], argument(node, 3, "prepend"), argument(node, 4, "append")):
            for i, axis in enumerate(flow.dims(value)):
                if i == dim:
                    flow.pin(axis, "neighbors are subtracted along it")
                else:
                    flow.unify(axis, dims[i])
        return *dims[:dim], new[dim], *dims[dim + 1 :]

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y.diff(dim=1, prepend=y[:, :1]))


class LookUp(Rule):
    """Search of the values of one tensor in another; `values` is the argument position of the values."""

    zeros = Zeros.LOST

    def __init__(self, values: int) -> None:
        self.values = values

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        value, table = node.args[self.values], node.args[1 - self.values]
        (*lead, last) = flow.dims(table)
        flow.pin(last, "values are searched in it")
        dims = flow.dims(value)
        if self.values == 0:
            for axis in lead:
                flow.pin(axis, "values are searched in it")
        for a, b in zip(lead, dims, strict=False) if self.values == 1 else ():
            flow.unify(a, b)
        return dims

    def examples(self) -> Iterator[Example]:
        table = torch.tensor([-1.0, 0.0, 1.0])
        yield between_layers(lambda y: y * torch.bucketize(y, table) + torch.isin(y.sign(), table))
        yield between_layers(lambda y: y * torch.searchsorted(table, y))


RULES.register(aten.isin.Tensor_Tensor, aten.bucketize.Tensor)(LookUp(0))
RULES.register(aten.searchsorted.Tensor)(LookUp(1))


class _Routed(nn.Module):
    """An example: each sample uses the two of five linear layers with the highest router scores."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 5)
        self.up, self.down = nn.Parameter(torch.randn(5, 6, 8)), nn.Parameter(torch.randn(5, 8, 3))

    def forward(self, x: Tensor) -> Any:
        weights, chosen = self.router(x).softmax(1).topk(2)
        hidden = torch.relu(x[:, None, None] @ self.up[chosen])
        return ((hidden @ self.down[chosen]).squeeze(2) * weights[:, :, None]).sum(1)
