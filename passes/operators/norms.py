"""Normalizations: the axes over which statistics are computed are not exact."""

from collections.abc import Iterator
from math import nan, prod
from typing import Any

import torch
from torch import fx, nn

from graphprune.axes.algebra import factor
from graphprune.axes.rule import Cut, Dims, Example, Flow, MaskedArguments, OpCall, Rule, Zeros
from graphprune.axes.rule_helpers import argument, between_layers, canonical_dim, literal, pinned_dims
from graphprune.passes.operators import RULES, rule

aten = torch.ops.aten


class Normalization(Rule):
    """Division by a standard deviation, which is 0 for zeros: without an `epsilon`, they become NaN."""

    epsilon: int  # position of the number that is added to the variance

    def masked_value(self, node: fx.Node, inputs: MaskedArguments) -> float | None:
        return super().masked_value(node, inputs) if argument(node, self.epsilon, "eps", 1e-5) != 0 else nan


class LayerNorm(Normalization):
    """Normalization over the last dimensions, which are then scaled element-wise."""

    summands = (3,)
    epsilon = 4

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        last = dims[len(dims) - len(literal(node, 1)) :]
        for axis in last:
            flow.mark_inexact(axis, "it is normalized here")
            flow.share_selection(dims, [axis])
        for value in (argument(node, 2, "weight"), argument(node, 3, "bias")):
            for a, b in zip(last, flow.dims(value), strict=False):
                flow.unify(a, b)
        return dims

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        dims = cut.dims(node.args[0])
        shape = [cut.width(axis) for axis in dims[len(dims) - len(literal(node, 1)) :]]
        return OpCall(node.target, (node.args[0], shape, *node.args[2:]), dict(node.kwargs))

    def examples(self) -> Iterator[Example]:
        yield Example(
            nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 2)),
            (torch.randn(3, 6),),
        )


RULES.register(aten.layer_norm.default)(LayerNorm())


@rule(aten.rms_norm.default)
class RMSNorm(Normalization):
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last dimensions."""

    linear_in = (2,)
    epsilon = 3

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        last = dims[len(dims) - len(literal(node, 1)) :]
        for axis in last:
            flow.average(axis, node.args[0])
            flow.share_selection(dims, [axis])
        for a, b in zip(last, flow.dims(argument(node, 2, "weight")), strict=False):
            flow.unify(a, b)
        return dims

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        last = cut.dims(node.args[0])[-len(literal(node, 1)) :]
        eps = argument(node, 3, "eps")
        eps = torch.finfo(node.meta["val"].dtype).eps if eps is None else eps
        eps *= prod(cut.mean_gain(axis) for axis in last)
        shape = [cut.width(axis) for axis in last]
        return OpCall(node.target, (node.args[0], shape, argument(node, 2, "weight"), eps), {})

    def gain(self, cut: Cut, node: fx.Node) -> float:
        """The factor of the mean, to the power of -1/2."""
        last = cut.dims(node.args[0])[-len(literal(node, 1)) :]
        return prod(cut.mean_gain(axis) for axis in last) ** -0.5

    def examples(self) -> Iterator[Example]:
        layers = nn.Linear(6, 8), nn.RMSNorm(8), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 2)
        yield Example(nn.Sequential(*layers), (torch.randn(3, 6),))
        yield Example(nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8, elementwise_affine=False)), (torch.randn(3, 6),))


class ChannelNorm(Normalization):
    """Normalization with a scale and a shift per channel, and statistics over `statistics_axes`."""

    summands: tuple[int, ...] = (2, 3)
    epsilon = 7

    def statistics_axes(self, node: fx.Node, dims: Dims) -> Dims:
        """The axes over which the statistics of a channel are computed; none if they are stored."""
        return dims[2:]

    def axes(self, flow: Flow, node: fx.Node) -> Any:
        dims = flow.dims(node.args[0])
        for axis in self.statistics_axes(node, dims):
            flow.mark_inexact(axis, "it is normalized here")
            flow.share_selection(dims, [axis])
        for value in node.args[1:5]:
            for axis in flow.dims(value):
                flow.unify(dims[1], axis)
        return dims


@rule(aten.batch_norm.default)
class BatchNorm(ChannelNorm):
    """Batch norm with stored statistics, or with those of the batch in training mode."""

    def statistics_axes(self, node: fx.Node, dims: Dims) -> Dims:
        return (dims[0], *dims[2:]) if self._by_batch(node) else ()

    def running_statistics(self, node: fx.Node) -> tuple[object, object] | None:
        return None if self._by_batch(node) else (node.args[3], node.args[4])

    def _by_batch(self, node: fx.Node) -> bool:
        return argument(node, 5, "training", False) is True

    def examples(self) -> Iterator[Example]:
        norm = nn.BatchNorm2d(8)
        norm.running_mean, norm.running_var = torch.randn(8), torch.rand(8) + 0.5
        yield Example(
            nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 4, 1)).eval(), (torch.randn(2, 3, 7, 7),)
        )


@rule(aten._native_batch_norm_legit_no_training.default)
class NativeBatchNorm(BatchNorm):
    """Batch norm with two more outputs, which are empty."""

    epsilon = 6

    def axes(self, flow: Flow, node: fx.Node) -> list[Dims]:
        empty = [pinned_dims(flow, val, "it is empty") for val in node.meta["val"][1:]]
        return [super().axes(flow, node), *empty]

    def examples(self) -> Iterator[Example]:
        yield Example(_Normalized(), (torch.randn(3, 6),))


class BatchStatistics(ChannelNorm):
    """Batch norm with the statistics of the batch, which are two more outputs."""

    summands = (2,)
    epsilon = 5

    def statistics_axes(self, node: fx.Node, dims: Dims) -> Dims:
        return dims[0], *dims[2:]

    def axes(self, flow: Flow, node: fx.Node) -> list[Dims]:
        dims = super().axes(flow, node)
        return [dims, (dims[1],), (dims[1],)]

    def masked_value(self, node: fx.Node, inputs: MaskedArguments) -> float | None:
        """Zero unless the third output is read: the reciprocal of the deviation, which is not."""
        reads_deviation = any(user.args[1:] == (2,) for user in node.users)
        return None if reads_deviation else super().masked_value(node, inputs)

    def examples(self) -> Iterator[Example]:
        yield Example(_Standardized(), (torch.randn(2, 3, 7, 7),))


RULES.register(aten._native_batch_norm_legit.no_stats)(BatchStatistics())


@rule(aten.instance_norm.default)
class InstanceNorm(ChannelNorm):
    """Normalization of every channel of every sample over its pixels, or by stored statistics."""

    def examples(self) -> Iterator[Example]:
        layers = nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Conv2d(8, 4, 1)
        yield Example(nn.Sequential(*layers), (torch.randn(2, 3, 7, 7),))


@rule(aten.group_norm.default)
class GroupNorm(ChannelNorm):
    """Normalization of channels within groups; whole groups can be cut exactly."""

    summands = (3,)
    epsilon = 4

    def statistics_axes(self, node: fx.Node, dims: Dims) -> Dims:
        _, inner = factor(dims[1], literal(node, 1))
        return inner, *dims[2:]

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        groups, _ = factor(cut.dims(node.args[0])[1], literal(node, 1))
        return OpCall(node.target, (node.args[0], cut.width(groups), *node.args[2:]), dict(node.kwargs))

    def examples(self) -> Iterator[Example]:
        layers = nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 4, 1)
        yield Example(nn.Sequential(*layers), (torch.randn(2, 3, 7, 7),))


class Softmax(Rule):
    """Softmax or its logarithm over one dimension, which is not exact."""

    zeros = Zeros.LOST

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        axis = dims[canonical_dim(literal(node, 1), len(dims))]
        flow.mark_inexact(axis, "it is normalized here")
        flow.share_selection(dims, [axis])
        return dims

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y.softmax(1) * y.log_softmax(2))


RULES.register(aten.softmax.int, aten._softmax.default, aten.log_softmax.int)(Softmax())


class _Normalized(nn.Module):
    """An example: the batch norm operator in graphs of other tools."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(6, 8), nn.Linear(8, 3), nn.BatchNorm1d(8)
        self.mean, self.var = nn.Buffer(torch.randn(8)), nn.Buffer(torch.rand(8) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = aten._native_batch_norm_legit_no_training.default
        y = norm(self.a(x), self.norm.weight, self.norm.bias, self.mean, self.var, 0.1, 1e-5)[0]
        return self.b(torch.relu(y))  # type: ignore[no-any-return]


class _Standardized(nn.Module):
    """An example: weights that are standardized before use, by output channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.a.weight.reshape(1, 8, -1)
        weight = aten._native_batch_norm_legit.no_stats(weight, None, None, True, 0.0, 1e-5)[0]
        return self.b(torch.conv2d(x, weight.reshape_as(self.a.weight), self.a.bias).relu())  # type: ignore[no-any-return]
