"""Windows and sub-pixels that become channels, and back: the channels around or inside them remain free."""

from collections.abc import Iterator

import torch
from torch import fx, nn

from graphprune.axes.algebra import Axis, Product, factor, prime, resolve
from graphprune.axes.rule import Cut, Dims, Example, Flow, OpCall, Rule, Zeros
from graphprune.axes.rule_helpers import between_layers, canonical_dim, literal
from graphprune.passes.operators import RULES, rule

aten = torch.ops.aten


@rule(aten.im2col.default)
class Unfold(Rule):
    """``(n c h w) -> (n (c window) places)``"""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        *batch, channels, height, width = flow.dims(node.args[0])
        *_, columns, places = flow.fresh(node)
        for axis in (height, width, places):
            flow.pin(axis, "a window slides along it")
        return *batch, with_window(flow, channels, columns.size // channels.size), places

    def examples(self) -> Iterator[Example]:
        layers = nn.Conv2d(3, 8, 1), nn.Unfold(3, padding=1), nn.Conv1d(72, 4, 1)
        yield Example(nn.Sequential(*layers), (torch.randn(2, 3, 5, 5),))


@rule(aten.col2im.default)
class Fold(Rule):
    """``(n (c window) places) -> (n c h w)``"""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        *batch, columns, places = flow.dims(node.args[0])
        *_, new, height, width = flow.fresh(node)
        channels, window = factor(columns, new.size)
        for axis in (window, places, height, width):
            flow.pin(axis, "a window slides along it")
        return *batch, channels, height, width

    def examples(self) -> Iterator[Example]:
        layers = nn.Conv1d(3, 72, 1), nn.Fold(5, 3, padding=1), nn.Conv2d(8, 4, 1)
        yield Example(nn.Sequential(*layers), (torch.randn(2, 3, 25),))


@rule(aten.unfold.default)
class Windows(Rule):
    """Windows along one dimension become a last dimension."""

    zeros = Zeros.MOVED

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims, new = list(flow.dims(node.args[0])), flow.fresh(node)
        dim = canonical_dim(literal(node, 1), len(dims))
        for axis in (dims[dim], new[dim], new[-1]):
            flow.pin(axis, "a window slides along it")
        dims[dim] = new[dim]
        return *dims, new[-1]

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y.unfold(1, 2, 1).sum(3))


class PixelShuffle(Rule):
    """``((... c r r) h w) -> (... c (h r) (w r))``"""

    zeros = Zeros.MOVED

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        *batch, channels, height, width = flow.dims(node.args[0])
        new = flow.fresh(node)
        outer, pixels = factor(channels, new[-3].size)
        for axis in (pixels, height, width, *new[-2:]):
            flow.pin(axis, "pixels are moved to it")
        return *batch, outer, *new[-2:]

    def examples(self) -> Iterator[Example]:
        layers = nn.Conv2d(3, 32, 1), nn.PixelShuffle(2), nn.Conv2d(8, 4, 1), nn.PixelUnshuffle(2), nn.Conv2d(16, 2, 1)
        yield Example(nn.Sequential(*layers), (torch.randn(2, 3, 4, 4),))


class PixelUnshuffle(Rule):
    """``(... c (h r) (w r)) -> ((... c r r) h w)``"""

    zeros = Zeros.MOVED

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        *batch, channels, height, width = flow.dims(node.args[0])
        new = flow.fresh(node)
        for axis in (height, width, *new[-2:]):
            flow.pin(axis, "pixels are moved to it")
        return *batch, with_window(flow, channels, new[-3].size // channels.size), *new[-2:]


RULES.register(aten.pixel_shuffle.default)(PixelShuffle())
RULES.register(aten.pixel_unshuffle.default)(PixelUnshuffle())


@rule(aten.channel_shuffle.default, aten.native_channel_shuffle.default)
class ChannelShuffle(Rule):
    """``n (g c) ... -> n (c g) ...``"""

    zeros = Zeros.MOVED

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        batch, channels, *rest = flow.dims(node.args[0])
        outer, inner = factor(channels, literal(node, 1))
        return batch, resolve(Product((inner, outer))), *rest

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        groups, _ = factor(cut.dims(node.args[0])[1], literal(node, 1))
        return OpCall(node.target, (node.args[0], cut.width(groups)), {})

    def examples(self) -> Iterator[Example]:
        layers = nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 4, 1)
        yield Example(nn.Sequential(*layers), (torch.randn(2, 3, 4, 4),))


def with_window(flow: Flow, axis: Axis, size: int) -> Axis:
    """The axis with a window of `size` elements inside each of its indices."""
    inner = prime(size)
    flow.pin(inner, "it is a window")
    return resolve(Product((axis, inner)))
