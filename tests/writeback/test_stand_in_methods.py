"""Tests of methods that an exporter puts in the place of a forward: what they read follows the cut, or is named."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.writeback.module import WrittenBack

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Inner(nn.Module):
    """An inner block that has the width of the outer one, too."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Any:
        return self.out(torch.cat([self.left(x).relu(), self.right(x).relu()], 1))


class Chunked(nn.Module):
    """Halves of a convolution, which another method splits by a width that only it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 16
        self.up, self.inner, self.down = nn.Conv2d(3, 32, 1), Inner(), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Any:
        left, right = self.up(x).chunk(2, 1)
        return self.down(torch.cat([left, self.inner(right)], 1))

    def forward_split(self, x: Tensor) -> Any:
        left, right = torch.split(self.up(x), [self.width, self.width], 1)
        return self.down(torch.cat([left, self.inner(right)], 1))


class TwoWidths(nn.Module):
    """Two widths that were equal and become different: only together are they right."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = {"pieces": (16, 16)}
        self.left, self.right, self.down = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Any:
        return self.down(torch.cat([self.left(x).relu(), self.right(x).sigmoid()], 1))

    def _export_forward(self, x: Tensor) -> Any:
        left, right = torch.split(torch.cat([self.left(x), self.right(x)], 1), list(self.sizes["pieces"]), 1)
        return self.down(torch.cat([left.relu(), right.sigmoid()], 1))


class OneWidth(TwoWidths):
    """One attribute cannot hold both widths."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 16

    def forward_split(self, x: Tensor) -> Any:
        left, right = torch.split(torch.cat([self.left(x), self.right(x)], 1), [self.width, self.width], 1)
        return self.down(torch.cat([left.relu(), right.sigmoid()], 1))


def cut(module: nn.Module, **target: Any) -> WrittenBack:
    torch.manual_seed(0)
    program = gp.trace(module.eval(), (IMAGE,))
    result: WrittenBack = gp.apply(program, gp.plan(program, **target)).write_back(module)
    return result


def test_a_width_is_the_one_with_which_the_method_equals_the_forward() -> None:
    module = Chunked()
    result = cut(module, widths={"up": 12, "inner.left": 5, "inner.right": 5})
    assert module.up.out_channels == 24 and module.inner.out.in_channels == 10  # both were twice 8
    assert result.assumed == ("Chunked.width = 12 (was 16)",) and not result.undetermined
    assert torch.equal(module.forward_split(IMAGE), module(IMAGE))


def test_widths_are_determined_together() -> None:
    module = TwoWidths()
    result = cut(module, widths={"left": 10, "right": 6})
    assert module.sizes == {"pieces": (10, 6)} and not result.undetermined
    assert torch.equal(module._export_forward(IMAGE), module(IMAGE))


def test_a_width_that_cannot_be_right_is_named_by_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    module = OneWidth()
    with caplog.at_level(logging.WARNING):
        result = cut(module, widths={"left": 10, "right": 6})
    assert module.width == 16 and result.undetermined == ("OneWidth.width = 16",)
    (record,) = caplog.records
    assert "OneWidth.width = 16 equals a former width" in record.message and "OneWidth.forward_split" in record.message
