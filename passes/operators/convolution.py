"""Convolutions: input channels are contracted within each group, output channels produced."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphprune.axes.algebra import Axis, Misaligned, Product, factor, resolve
from graphprune.axes.rule import Consumer, Cut, Dims, Example, Flow, OpCall, Rule
from graphprune.axes.rule_helpers import argument, bias_slot, convolution_dims, literal
from graphprune.passes.operators import RULES

aten = torch.ops.aten
GROUPS = 6  # the position of `groups` in the arguments of conv1d, conv2d and conv3d


class Convolution(Rule):
    """``x (n (g i) ...), weight ((g o) i ...) -> (n (g o) ...)``"""

    summands = (2,)
    linear_in = (0, 1)

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        out = convolution_dims(flow, node, self.channels)
        flow.count_macs(*out, *flow.dims(node.args[1])[1:])
        return out

    def channels(self, flow: Flow, node: fx.Node, channels: Axis, weight: Dims) -> Axis:
        """The output channels; input channels are unified with those of the weight group by group."""
        groups = argument(node, GROUPS, "groups", 1)
        if not isinstance(groups, int):
            raise Misaligned("the number of groups depends on the input")
        outer, inner = factor(channels, groups)
        out_groups, per_group = factor(weight[0], groups)
        flow.unify(outer, out_groups)
        flow.unify(inner, weight[1])
        flow.contract(weight[1], node.args[0], node.args[1])
        flow.share_selection([weight[1]], [per_group])
        if groups == 1:
            consume(flow, node)
        return resolve(Product((out_groups, per_group)))

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        groups = argument(node, GROUPS, "groups", 1)
        if groups == 1:
            return OpCall(node.target, node.args, dict(node.kwargs))
        inner = cut.width(cut.dims(node.args[1])[1])
        spatial = len(cut.dims(node.args[1])) - 2
        new = cut.width(cut.dims(node.args[0])[-spatial - 1]) // inner
        kwargs = {key: value for key, value in node.kwargs.items() if key != "groups"}
        defaults = (None, None, None, [1], [0], [1], 1)
        args = (*node.args, *(kwargs.pop(*_named(i, defaults)) for i in range(len(node.args), GROUPS)))
        return OpCall(node.target, (*args[:GROUPS], new), kwargs)

    def examples(self) -> Iterator[Example]:
        image = torch.randn(2, 3, 9, 9)
        yield Example(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2, padding=1)), (image,))
        depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        yield Example(nn.Sequential(nn.Conv2d(3, 8, 1), depthwise, nn.Conv2d(8, 4, 1)), (image,))
        grouped = nn.Conv2d(8, 12, 3, groups=4)
        yield Example(nn.Sequential(nn.Conv2d(3, 8, 1), grouped, nn.ReLU(), nn.Conv2d(12, 4, 1)), (image,))
        line = torch.randn(2, 3, 9)
        yield Example(nn.Sequential(nn.Conv1d(3, 8, 3, padding="same"), nn.Conv1d(8, 4, 3, dilation=2)), (line,))


RULES.register(
    aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding,
    aten.conv3d.default, aten.conv3d.padding,
)(Convolution())  # fmt: skip


def _named(index: int, defaults: tuple[Any, ...]) -> tuple[str, Any]:
    return ("input", "weight", "bias", "stride", "padding", "dilation", "groups")[index], defaults[index]


def consume(flow: Flow, node: fx.Node) -> None:
    """Report a linear operator for 1d and 2d convolutions whose input `unfold` can lay out as a matrix."""
    x, weight = node.args[:2]
    spatial = len(flow.dims(weight)) - 2
    unfold = unfolder(node, spatial)
    if unfold is None or not isinstance(x, fx.Node) or (source := flow.parameter_of(weight)) is None:
        return
    kernel = tuple(axis.size for axis in flow.dims(weight)[2:])
    bias, bias_at = bias_slot(flow, node, 2)
    flow.consume(
        Consumer(
            node=node.name, x=x.name, weight=source[0], dim=1, axis=flow.dims(weight)[1],
            features=unfold,
            matrix=lambda w: w.flatten(1),
            restore=lambda m: m.reshape(m.shape[0], -1, *kernel),
            taps=torch.Size(kernel).numel(),
            outputs=lambda y: y.flatten(2).transpose(1, 2).flatten(0, 1),
            bias=bias, bias_at=bias_at,
        )
    )  # fmt: skip


def unfolder(node: fx.Node, spatial: int) -> Callable[[Tensor], Tensor] | None:
    """Function from an input to its im2col matrix of shape (tokens, channels * taps); None if there is none."""
    stride, padding, dilation = (
        argument(node, i, n, d) for i, n, d in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    if spatial > 2 or isinstance(padding, str):
        return None
    kernel = [int(size) for size in literal(node, 1).meta["val"].shape[2:]]
    plane = [_pair(value, spatial, unit) for value, unit in ((dilation, 1), (padding, 0), (stride, 1))]
    kernel = [1] * (2 - spatial) + kernel

    def unfold(x: Tensor) -> Tensor:
        image = x if spatial == 2 else x.unsqueeze(-2)
        return F.unfold(image, tuple(kernel), *plane).transpose(1, 2).flatten(0, 1)

    return unfold


def _pair(value: Any, spatial: int, unit: int) -> tuple[int, ...]:
    """Values for height and width; a 1d convolution has height 1."""
    values = [value] if isinstance(value, int) else list(value)
    values = values * spatial if len(values) == 1 else values
    return (*[unit] * (2 - spatial), *values)
