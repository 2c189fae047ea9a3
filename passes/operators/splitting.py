"""Operators that split dimensions into segments, or concatenate them."""

from collections.abc import Iterator
from itertools import accumulate, pairwise
from operator import getitem
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from graphprune.axes.algebra import Axis, direct_sum, resolve, split_axis
from graphprune.axes.algebra import prime as new_prime
from graphprune.axes.rule import Cut, Dims, Example, Flow, MaskedArguments, OpCall, Rule, Zeros
from graphprune.axes.rule_helpers import DYNAMIC, argument, between_layers, canonical_dim, literal, size_hint
from graphprune.axes.slice_helpers import bounds_after_cut, slice_bounds, sliced_axis
from graphprune.passes.operators import RULES, rule

aten = torch.ops.aten


class Concatenate(Rule):
    """Concatenation: a sum of axes along one dimension, equal axes along the others."""

    zeros = Zeros.MOVED

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        inputs = [flow.dims(value) for value in literal(node, 0)]
        # An empty vector, the initial state of some caches, may be concatenated with anything.
        operands = [dims for dims in inputs if [axis.size for axis in dims] != [0]] or inputs
        dim = canonical_dim(argument(node, 1, "dim", 0), len(operands[0]))
        result = list(operands[0])
        for other in operands[1:]:
            for i in set(range(len(result))) - {dim}:
                flow.unify(result[i], other[i])
        result[dim] = direct_sum([resolve(dims[dim]) for dims in operands])
        return tuple(result)

    def examples(self) -> Iterator[Example]:
        yield Example(_Halves(), (torch.randn(3, 6),))


RULES.register(aten.cat.default, aten.concat.default, aten.concatenate.default)(Concatenate())


@rule(aten.stack.default)
class Stack(Rule):
    """Values of equal shape along a new dimension, which is pinned."""

    zeros = Zeros.MOVED

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        values: Any = node.args[0]
        operands = [flow.dims(value) for value in values]
        result = list(operands[0])
        for other in operands[1:]:
            for a, b in zip(result, other, strict=True):
                flow.unify(a, b)
        dim = canonical_dim(argument(node, 1, "dim", 0), len(result) + 1)
        result.insert(dim, new_prime(len(operands), "values are stacked along it"))
        return tuple(result)

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: torch.stack((y, -y), dim=2).amax(2))


class SplitSections(Rule):
    """Split of one dimension into consecutive segments."""

    rowwise = True
    zeros = Zeros.MOVED

    def axes(self, flow: Flow, node: fx.Node) -> list[Dims]:
        dims = flow.dims(node.args[0])
        dim = canonical_dim(argument(node, 2, "dim", 0), len(dims))
        pieces = self.pieces(flow, node, dims[dim], dim)
        return [(*dims[:dim], piece, *dims[dim + 1 :]) for piece in pieces]

    def pieces(self, flow: Flow, node: fx.Node, axis: Axis, dim: int) -> tuple[Axis, ...]:
        """Axes of the segments; new pinned ones if their sizes depend on the input."""
        sizes = [value.shape[dim] for value in node.meta["val"]]
        if all(isinstance(size, int) for size in sizes):
            return split_axis(axis, sizes)
        flow.pin(axis, "sizes that depend on the input split it")
        return tuple(new_prime(size_hint(size), DYNAMIC) for size in sizes)

    def sizes(self, node: fx.Node, dim: int) -> list[int]:
        """Sizes of the segments before a cut."""
        return [size_hint(value.shape[dim]) for value in node.meta["val"]]

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        dims = cut.dims(node.args[0])
        dim = canonical_dim(argument(node, 2, "dim", 0), len(dims))
        if not cut.changed(dims[dim]):
            return OpCall(node.target, node.args, dict(node.kwargs))
        ends = [0, *accumulate(self.sizes(node, dim))]
        sizes = [cut.count_retained(dims[dim], a, b) for a, b in pairwise(ends)]
        return OpCall(aten.split_with_sizes.default, (node.args[0], sizes, dim), {})

    def examples(self) -> Iterator[Example]:
        yield Example(_Fused(), (torch.randn(3, 6),))
        yield between_layers(lambda y: torch.cat(torch.split(y, [len(y) // 2, len(y) - len(y) // 2])[::-1]))


RULES.register(aten.split_with_sizes.default, aten.split.Tensor, aten.split.sizes, aten.chunk.default)(SplitSections())


@rule(aten.unbind.int)
class Unbind(Rule):
    """Every index of one dimension becomes a separate value."""

    zeros = Zeros.MOVED

    def axes(self, flow: Flow, node: fx.Node) -> list[Dims]:
        dims = flow.dims(node.args[0])
        dim = canonical_dim(argument(node, 1, "dim", 0), len(dims))
        flow.pin(dims[dim], "it is unbound into single indices")
        return [(*dims[:dim], *dims[dim + 1 :])] * dims[dim].size

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: sum(y.unbind(1), y[:, 0]))


@rule(getitem)
class Item(Rule):
    """One of several outputs."""

    rowwise = True
    zeros = Zeros.MOVED

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        outputs: Any = flow.dims(node.args[0])
        dims: Dims = outputs[literal(node, 1)]
        return dims


@rule(aten.select.int)
class IndexSelection(Rule):
    """One index of a dimension, which is pinned."""

    zeros = Zeros.MOVED

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        dim = canonical_dim(literal(node, 1), len(dims))
        flow.pin(dims[dim], f"index {node.args[2]} is taken from it")
        return *dims[:dim], *dims[dim + 1 :]

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y[:, 0] + y[:, :, 2:3].sum(1))


@rule(aten.slice.Tensor)
class Slice(Rule):
    """A segment of one dimension, or every n-th index of it."""

    rowwise = True
    zeros = Zeros.MOVED

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims, size = flow.dims(node.args[0]), flow.fresh(node)
        dim = canonical_dim(argument(node, 1, "dim", 0), len(dims))
        bound = slice_bounds(node, 2, dims[dim].size)
        return *dims[:dim], sliced_axis(flow, dims[dim], bound, size[dim]), *dims[dim + 1 :]

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        x, dims = node.args[0], cut.dims(node.args[0])
        dim = canonical_dim(argument(node, 1, "dim", 0), len(dims))
        if not cut.changed(dims[dim]):
            return OpCall(node.target, node.args, dict(node.kwargs))
        return OpCall(
            node.target, (x, dim, *bounds_after_cut(cut, dims[dim], slice_bounds(node, 2, dims[dim].size))), {}
        )

    def examples(self) -> Iterator[Example]:
        yield Example(_Halves(), (torch.randn(3, 6),))
        yield between_layers(_first_positive)


@rule(aten.constant_pad_nd.default, aten.pad.default)
class Pad(Rule):
    """Padding before and after a dimension: zeros are indices that can be cut with the axis they are added to."""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims, new = list(flow.dims(node.args[0])), flow.fresh(node)
        for i, (before, behind) in enumerate(padding_pairs(node), start=1):
            known = not isinstance(before, fx.Node) and not isinstance(behind, fx.Node)
            if known and before == behind == 0:
                continue
            if known and pads_zeros(node) and min(before, behind) >= 0:
                dims[-i] = direct_sum([new_prime(before), resolve(dims[-i]), new_prime(behind)])
                continue
            for axis in (dims[-i], new[-i]):
                flow.pin(axis, "it is padded with other values than a fixed number of zeros")
            dims[-i] = new[-i]
        return tuple(dims)

    def masked_value(self, node: fx.Node, inputs: MaskedArguments) -> float | None:
        mirrored = argument(node, 2, "mode", "constant") != "constant" and node.target is aten.pad.default
        return super().masked_value(node, inputs) if mirrored or pads_zeros(node) else None

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        old, new = cut.dims(node.args[0]), cut.dims(node)
        literals: list[Any] = []
        for i, (before, behind) in enumerate(padding_pairs(node), start=1):
            if cut.changed(new[-i]):
                first, last = before, before + old[-i].size
                before, behind = cut.count_retained(new[-i], 0, first), cut.count_retained(new[-i], last, new[-i].size)
            literals += [before, behind]
        return OpCall(node.target, (node.args[0], literals, *node.args[2:]), dict(node.kwargs))

    def examples(self) -> Iterator[Example]:
        yield Example(_Padded(), (torch.randn(3, 6),))
        yield between_layers(lambda y: F.pad(y, (0, 0, 0, 0, 0, -len(y) % 4)))
        yield between_layers(lambda y: F.pad(F.pad(y, (0, 0, 2, 1), "reflect"), (0, 0, -1, -1)))


def pads_zeros(node: fx.Node) -> bool:
    """Whether the padding is zeros."""
    if node.target is aten.constant_pad_nd.default:
        return not argument(node, 2, "value")
    return not argument(node, 3, "value") and bool(argument(node, 2, "mode", "constant") == "constant")


def padding_widths(node: fx.Node) -> list[Any]:
    """Amounts of padding, numbers or symbols."""
    return list(literal(node, 1))


def padding_pairs(node: fx.Node) -> list[tuple[Any, Any]]:
    """Amounts of padding before and after each dimension, the last dimension first."""
    flat = padding_widths(node)
    return list(zip(flat[::2], flat[1::2], strict=True))


def _first_positive(y: torch.Tensor) -> torch.Tensor:
    """The first samples, as many as have a positive first number, which depends on the data."""
    count: Any = (y[:, 0, 0] > 0).sum().item()
    torch._check(count <= len(y))  # type: ignore[no-untyped-call]
    return y[:count].reshape(count, -1, 4).flatten(1).view(count, 5, 8)


class _Halves(nn.Module):
    """An example: halves swapped and added, which makes them one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        return self.b(torch.cat((-y[:, 4:], y[:, :4]), dim=1) + y)


class _Fused(nn.Module):
    """An example: one projection split into three of unequal size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> Any:
        u, v, w = self.a(x).split([6, 6, 4], dim=1)
        return u * torch.relu(v) @ self.b.weight.T + w @ self.c.weight[:, :4].T


class _Padded(nn.Module):
    """An example: a shortcut padded with zero channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 4), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        return self.c(F.pad(y, (2, 2)) + self.b(y))
