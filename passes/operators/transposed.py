"""Transposed convolutions: input channels are contracted within each group, output channels produced."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphprune.axes.algebra import Axis, Product, factor, resolve
from graphprune.axes.rule import Consumer, Cut, Dims, Example, Flow, OpCall, Rule
from graphprune.axes.rule_helpers import argument, convolution_dims
from graphprune.passes.operators import RULES

aten = torch.ops.aten
DEFAULTS = (("bias", None), ("stride", [1]), ("padding", [0]), ("output_padding", [0]), ("groups", 1))


class TransposedConvolution(Rule):
    """``x (n (g i) ...), weight ((g i) o ...) -> (n (g o) ...)``"""

    summands = (2,)
    linear_in = (0, 1)
    groups = 6  # position of the argument `groups`

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        flow.count_macs(*flow.dims(node.args[0]), *flow.dims(node.args[1])[1:])
        return convolution_dims(flow, node, self.channels)

    def channels(self, flow: Flow, node: fx.Node, channels: Axis, weight: Dims) -> Axis:
        """The output channels; input channels are unified with those of the weight group by group."""
        groups = argument(node, self.groups, "groups", 1)
        flow.unify(channels, weight[0])
        outer, inner = factor(weight[0], groups)
        flow.contract(inner, node.args[0], node.args[1])
        flow.share_selection([inner], [weight[1]])
        if groups == 1:
            consume(flow, node)
        return resolve(Product((outer, weight[1])))

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        groups = argument(node, self.groups, "groups", 1)
        if groups == 1:
            return OpCall(node.target, node.args, dict(node.kwargs))
        outer, _ = factor(cut.dims(node.args[1])[0], groups)
        return self.grouped(node, int(cut.width(outer)))

    def grouped(self, node: fx.Node, groups: int) -> OpCall:
        """The call with another number of groups."""
        arguments = {name: argument(node, i, name, default) for i, (name, default) in enumerate(DEFAULTS, start=2)}
        new = (*node.args[:2], *(arguments | {"groups": groups}).values(), argument(node, 7, "dilation", [1]))
        return OpCall(node.target, new, {})

    def examples(self) -> Iterator[Example]:
        image = torch.randn(2, 3, 5, 5)
        wide = nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1)
        yield Example(nn.Sequential(nn.Conv2d(3, 8, 1), wide, nn.ReLU(), nn.Conv2d(6, 4, 1)), (image,))
        grouped = nn.ConvTranspose2d(8, 12, 3, groups=4, bias=False)
        yield Example(nn.Sequential(nn.Conv2d(3, 8, 1), grouped, nn.ReLU(), nn.Conv2d(12, 4, 1)), (image,))
        depthwise = nn.ConvTranspose1d(8, 8, 4, 2, groups=8)
        yield Example(nn.Sequential(nn.Conv1d(3, 8, 1), depthwise, nn.Conv1d(8, 4, 1)), (torch.randn(2, 3, 5),))
        solid = nn.ConvTranspose3d(8, 4, 2, dilation=2), nn.Conv3d(4, 2, 1)
        yield Example(nn.Sequential(nn.Conv3d(3, 8, 1), *solid), (torch.randn(2, 3, 4, 4, 4),))


RULES.register(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)(
    TransposedConvolution()
)


def consume(flow: Flow, node: fx.Node) -> None:
    """Report a linear operator from every input pixel to all taps of the output channels, which are then summed."""
    x, source = node.args[0], flow.parameter_of(node.args[1])
    if not isinstance(x, fx.Node) or source is None or source[1] != tuple(range(len(source[1]))):
        return
    shape = [axis.size for axis in flow.dims(node.args[1])[2:]]

    def restore(matrix: Tensor) -> Tensor:
        return matrix.T.reshape(matrix.shape[1], -1, *shape)

    def features(value: Any) -> Tensor:
        return value.flatten(2).transpose(1, 2).flatten(0, 1)  # type: ignore[no-any-return]

    flow.consume(
        Consumer(
            node=node.name, x=x.name, weight=source[0], dim=0, axis=flow.dims(node.args[1])[0],
            features=features, matrix=lambda w: w.flatten(1).T, restore=restore,
        )
    )  # fmt: skip
