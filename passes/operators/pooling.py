"""Pooling, resizing and sampling: channels pass through, spatial dimensions are pinned."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from graphprune.axes.rule import Dims, Example, Flow, Rule, Zeros
from graphprune.axes.rule_helpers import pinned_dims
from graphprune.passes.operators import RULES

aten = torch.ops.aten


class Pooling(Rule):
    """Windows over the last `spatial` dimensions, which are pinned."""

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


class PoolWithIndices(Pooling):
    """Max pooling with two outputs: the values, and their positions."""

    zeros = Zeros.LOST

    def axes(self, flow: Flow, node: fx.Node) -> list[Dims]:  # type: ignore[override]
        dims = flow.dims(node.args[0])
        for axis in dims[-self.spatial :]:
            flow.pin(axis, "a window slides along it")
        new = pinned_dims(flow, node.meta["val"][0], "it is a spatial dimension")
        return [(*dims[: -self.spatial], *new[-self.spatial :])] * 2

    def examples(self) -> Iterator[Example]:
        flat = nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(32, 2)
        yield Example(nn.Sequential(nn.Conv2d(3, 8, 3), *flat), (torch.randn(2, 3, 9, 9),))
        yield Example(_Unpooled(), (torch.randn(2, 3, 8, 8),))


class Unpool(Pooling):
    """Values are written to the positions from which they were pooled, in a tensor of zeros."""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims, indices = flow.dims(node.args[0]), flow.dims(node.args[1])
        for a, b in zip(dims, indices, strict=True):
            flow.unify(a, b)
        return super().axes(flow, node)


class GridSample(Rule):
    """``image (n c ...), grid (n ... d) -> (n c ...)``: output pixels are interpolated at the positions of a grid."""

    zeros = Zeros.PRESERVED

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        (batch, channels, *image), (other, *new, last) = flow.dims(node.args[0]), flow.dims(node.args[1])
        flow.unify(batch, other)
        for axis in (*image, *new, last):
            flow.pin(axis, "pixels are sampled along it")
        return batch, channels, *new

    def examples(self) -> Iterator[Example]:
        yield Example(_Warped(), (torch.randn(2, 3, 5, 5),))


RULES.register(
    aten.max_pool1d.default, aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default,
    aten.upsample_nearest1d.default, aten.upsample_nearest1d.vec, aten._upsample_nearest_exact1d.default,
    aten._upsample_nearest_exact1d.vec, aten.upsample_linear1d.default, aten.upsample_linear1d.vec,
    aten.reflection_pad1d.default, aten.replication_pad1d.default,
)(Pooling(1))  # fmt: skip
RULES.register(
    aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool2d.default, aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec,
    aten._upsample_nearest_exact2d.default, aten._upsample_nearest_exact2d.vec, aten.upsample_bilinear2d.default,
    aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.default, aten.upsample_bicubic2d.vec,
    aten._upsample_bilinear2d_aa.default, aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.default,
    aten._upsample_bicubic2d_aa.vec, aten.reflection_pad2d.default, aten.replication_pad2d.default,
)(Pooling(2))  # fmt: skip
RULES.register(
    aten.max_pool3d.default, aten.avg_pool3d.default, aten.adaptive_avg_pool3d.default,
    aten._adaptive_avg_pool3d.default, aten.upsample_nearest3d.default, aten.upsample_nearest3d.vec,
    aten._upsample_nearest_exact3d.default, aten._upsample_nearest_exact3d.vec, aten.upsample_trilinear3d.default,
    aten.upsample_trilinear3d.vec, aten.reflection_pad3d.default, aten.replication_pad3d.default,
)(Pooling(3))  # fmt: skip
RULES.register(aten.max_pool1d_with_indices.default, aten.adaptive_max_pool1d.default)(PoolWithIndices(1))
RULES.register(
    aten.max_pool2d_with_indices.default, aten.adaptive_max_pool2d.default, aten.fractional_max_pool2d.default,
)(PoolWithIndices(2))  # fmt: skip
RULES.register(
    aten.max_pool3d_with_indices.default, aten.adaptive_max_pool3d.default, aten.fractional_max_pool3d.default,
)(PoolWithIndices(3))  # fmt: skip
RULES.register(aten.max_unpool2d.default)(Unpool(2))
RULES.register(aten.max_unpool3d.default)(Unpool(3))
RULES.register(aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)(GridSample())


class _Unpooled(nn.Module):
    """An example: max pooling followed by unpooling."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> Any:
        y, indices = F.max_pool2d(self.a(x), 2, return_indices=True)
        return self.b(F.max_unpool2d(y, indices, [2, 2]))


class _Warped(nn.Module):
    """An example: features sampled on a computed grid."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        grid = torch.tanh(self.c(y)).permute(0, 2, 3, 1)
        return self.b(F.grid_sample(y, grid, align_corners=False))
