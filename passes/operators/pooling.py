"""Pooling and resizing: channels pass, spatial dimensions stay as they are."""

from collections.abc import Iterator

import torch
from torch import fx, nn

from graphprune.contracts import Dims, Example, Flow, Rule
from graphprune.passes.operators import RULES

aten = torch.ops.aten


class Pool(Rule):
    """Windows over the last `spatial` dimensions."""

    def __init__(self, spatial: int) -> None:
        self.spatial = spatial

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        for axis in dims[-self.spatial :]:
            flow.pin(axis, "a window slides along it")
        return *dims[: -self.spatial], *flow.fresh(node, "it is a spatial dimension")[-self.spatial :]

    def examples(self) -> Iterator[Example]:
        flat = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
        yield Example(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.AvgPool2d(2), *flat), (torch.randn(2, 3, 12, 12),)
        )
        yield Example(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2), *flat), (torch.randn(2, 3, 5, 5),))
        line = nn.Conv1d(3, 8, 3), nn.MaxPool1d(2), nn.Conv1d(8, 4, 1)
        yield Example(nn.Sequential(*line), (torch.randn(2, 3, 9),))
        solid = nn.Conv3d(3, 8, 1), nn.AvgPool3d(2), nn.Conv3d(8, 4, 1)
        yield Example(nn.Sequential(*solid), (torch.randn(2, 3, 4, 4, 4),))


RULES.register(aten.max_pool1d.default, aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default)(Pool(1))
RULES.register(
    aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default,
    aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.vec,
)(Pool(2))  # fmt: skip
RULES.register(aten.max_pool3d.default, aten.avg_pool3d.default, aten.adaptive_avg_pool3d.default)(Pool(3))
