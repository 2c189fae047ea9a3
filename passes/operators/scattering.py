"""Operators that write into a copy of a tensor: zero where both the tensor and the written values are."""

from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from graphprune.axes.algebra import UNIT, Axis, Misaligned
from graphprune.axes.rule import Cut, Dims, Example, Flow, OpCall, Rule, Zeros
from graphprune.axes.rule_helpers import (
    argument,
    between_layers,
    broadcast,
    canonical_dim,
    indexed_dims,
    literal,
    unify_prefix,
)
from graphprune.axes.slice_helpers import bounds_after_cut, slice_bounds, sliced_axis
from graphprune.passes.operators import RULES, rule

aten = torch.ops.aten


def report_written(flow: Flow, axis: Axis, adds: bool, *values: object) -> None:
    """Report the axis of values that are written to indices: masked ones add zero, but overwrite what was there."""
    if adds:
        flow.contract(axis, *values)
    else:
        flow.mark_inexact(axis, "values along it overwrite others, or are combined otherwise than by a sum")


class Scatter(Rule):
    """Values or a number are written at the indices of a tensor along one dimension."""

    selects = (2,)
    summands = (0, 3)

    def adds(self, node: fx.Node) -> bool:
        """Whether the values are added to those of the tensor."""
        if node.target is aten.scatter_add.default:
            return True
        reduce = argument(node, 4, "reduce")
        return reduce == "add" or (reduce == "sum" and bool(argument(node, 5, "include_self", True)))

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims, index = flow.dims(node.args[0]), flow.dims(node.args[2])
        if not dims:
            raise Misaligned("it is scattered into a number")
        dim = canonical_dim(literal(node, 1), len(dims))
        flow.look_up(dims[dim], node.args[2])
        for i, (axis, own) in enumerate(zip(dims, index, strict=True)):
            if i != dim:
                unify_prefix(flow, axis, own)
        for own, new in zip(index, flow.dims(node.args[3]), strict=False):
            unify_prefix(flow, own, new)
        report_written(flow, index[dim], self.adds(node), node.args[3])
        return dims

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: torch.zeros_like(y).scatter(1, _rows(y), y[:, :3]))
        yield between_layers(lambda y: y.scatter(1, _rows(y), 0.0) + y.scatter_add(1, _rows(y), torch.relu(y)[:, :3]))
        yield between_layers(lambda y: y.scatter(1, _rows(y), 1.0))
        yield Example(_Grouped("amax", include_self=False), (torch.randn(3, 6),))
        yield Example(_Grouped("sum", include_self=True), (torch.randn(3, 6),))


RULES.register(
    aten.scatter.value, aten.scatter.src, aten.scatter.reduce, aten.scatter.value_reduce, aten.scatter_add.default,
    aten.scatter_reduce.two,
)(Scatter())  # fmt: skip


class IndexAdd(Rule):
    """Slices are added, or written, at the indices of a vector along one dimension."""

    selects = (2,)
    summands = (0, 3)

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims, source = flow.dims(node.args[0]), flow.dims(node.args[3])
        dim = canonical_dim(literal(node, 1), len(dims))
        flow.look_up(dims[dim], node.args[2])
        for i, (axis, new) in enumerate(zip(dims, source, strict=True)):
            flow.unify(new, (flow.dims(node.args[2]) or (UNIT,))[0] if i == dim else axis)
        report_written(flow, source[dim], node.target is aten.index_add.default, node.args[3])
        return dims

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: torch.zeros(len(y), 5, 8).index_add(1, torch.tensor([0, 0, 2]), y[:, :3]))
        yield between_layers(lambda y: y.index_copy(1, torch.tensor([1, 2]), torch.relu(y)[:, :2]))
        groups = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
        yield between_layers(lambda y: torch.zeros(len(y), 5, 3).index_add(2, groups, y), 3)


RULES.register(aten.index_add.default, aten.index_copy.default)(IndexAdd())


@rule(aten.index_put.default)
class IndexPut(Rule):
    """Values, broadcast to the indexed elements, are written there."""

    selects = (1,)
    summands = (0, 2)

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        before, index, after = indexed_dims(flow, dims, literal(node, 1))
        written = broadcast(flow, [(*before, *index, *after), flow.dims(node.args[2])])
        for axis in written[len(before) : len(written) - len(after)]:
            report_written(flow, axis, bool(argument(node, 3, "accumulate", False)), node.args[2])
        return dims

    def examples(self) -> Iterator[Example]:
        rows = torch.tensor([3, 1])
        yield between_layers(lambda y: torch.zeros_like(y).index_put((torch.arange(len(y))[:, None], rows), y[:, :2]))
        yield between_layers(lambda y: y.index_put((y[..., 0] > 0,), torch.zeros(())))


@rule(aten.slice_scatter.default)
class SliceScatter(Rule):
    """Replacement of a slice of one dimension."""

    zeros = Zeros.MOVED

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims, source = flow.dims(node.args[0]), flow.dims(node.args[1])
        dim = canonical_dim(argument(node, 2, "dim", 0), len(dims))
        for i, (axis, new) in enumerate(zip(dims, source, strict=True)):
            taken = sliced_axis(flow, axis, slice_bounds(node, 3, axis.size), new) if i == dim else axis
            flow.unify(taken, new)
        return dims

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        dims = cut.dims(node.args[0])
        dim = canonical_dim(argument(node, 2, "dim", 0), len(dims))
        bound = bounds_after_cut(cut, dims[dim], slice_bounds(node, 3, dims[dim].size))
        return OpCall(node.target, (*node.args[:2], dim, *bound), {})

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: torch.slice_scatter(y, torch.relu(y)[..., :3], 2, 2, 5))
        yield between_layers(lambda y: torch.slice_scatter(torch.zeros_like(y), y[..., 1::2], 2, 0, None, 2))
        yield between_layers(lambda y: torch.slice_scatter(y, y[:, :2], 1, -2))


@rule(aten.select_scatter.default)
class SelectScatter(Rule):
    """Replacement of one index of a dimension."""

    zeros = Zeros.MOVED

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        dim = canonical_dim(argument(node, 2, "dim"), len(dims))
        flow.pin(dims[dim], f"index {argument(node, 3, 'index')} is put into it")
        for axis, new in zip((*dims[:dim], *dims[dim + 1 :]), flow.dims(node.args[1]), strict=True):
            flow.unify(axis, new)
        return dims

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: torch.select_scatter(y, y[:, 0].relu(), 1, 2))


@rule(aten.copy.default, aten.copy_.default)
class Copy(Rule):
    """The values of the second argument in the shape of the first."""

    zeros = Zeros.MOVED
    selects = (0,)

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        return broadcast(flow, [flow.dims(node.args[0]), flow.dims(node.args[1])])

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: aten.copy.default(torch.empty_like(y), y) * aten.copy.default(y, y[0, 0]))


@rule(aten.masked_scatter.default)
class MaskedScatter(Rule):
    """Values are written in order at the true elements of a mask."""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        raise Misaligned("values are written into it in the order of a mask")

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y.masked_scatter(y > 0, y.abs()))


def _rows(y: Tensor) -> Tensor:
    """Three of five positions for every channel."""
    return torch.tensor([0, 4, 2])[:, None].expand(len(y), 3, y.shape[2])


class _Grouped(nn.Module):
    """An example: channels that are combined by group."""

    def __init__(self, reduce: str, include_self: bool) -> None:
        super().__init__()
        self.reduce, self.include_self = reduce, include_self
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(2, 3)
        self.groups = nn.Buffer(torch.arange(12) % 2)

    def forward(self, x: Tensor) -> Tensor:
        y, index = self.b(self.a(x)), self.groups.expand(len(x), 12)
        base = torch.zeros(len(x), 2)
        return self.c(base.scatter_reduce(1, index, y, self.reduce, include_self=self.include_self))  # type: ignore[no-any-return]
