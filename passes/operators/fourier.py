"""Fourier transforms: the transformed dimensions are pinned, all others pass through."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from graphprune.axes.rule import Dims, Example, Flow, Rule
from graphprune.axes.rule_helpers import argument, between_layers, canonical_dims
from graphprune.passes.operators import RULES

aten = torch.ops.aten


class Fourier(Rule):
    """A transform along the dimensions at argument position `dims`, or along the `default` ones."""

    def __init__(self, dims: int, default: Any) -> None:
        self.dims_at, self.default = dims, default

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims, new = list(flow.dims(node.args[0])), flow.fresh(node)
        for i in canonical_dims(argument(node, self.dims_at, "dim", self.default), len(dims)):
            for axis in (dims[i], new[i]):
                flow.pin(axis, "it is transformed to frequencies here")
            dims[i] = new[i]
        return tuple(dims)

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: torch.fft.fft(y, dim=1).abs())
        yield between_layers(lambda y: torch.fft.irfft2(torch.fft.rfft2(y.mT, dim=(0, 2)), s=(2, 5), dim=(0, 2)).mT)
        yield between_layers(lambda y: torch.fft.fftn(y, dim=(0, 1)).abs())


RULES.register(
    aten.fft_fft.default, aten.fft_ifft.default, aten.fft_rfft.default, aten.fft_irfft.default, aten.fft_hfft.default,
    aten.fft_ihfft.default,
)(Fourier(2, -1))  # fmt: skip
RULES.register(aten.fft_fft2.default, aten.fft_ifft2.default, aten.fft_rfft2.default, aten.fft_irfft2.default)(
    Fourier(2, [-2, -1])
)
RULES.register(aten.fft_fftn.default, aten.fft_ifftn.default, aten.fft_rfftn.default, aten.fft_irfftn.default)(
    Fourier(2, None)
)
RULES.register(
    aten._fft_c2c.default, aten._fft_r2c.default, aten._fft_c2r.default, aten.fft_fftshift.default,
    aten.fft_ifftshift.default,
)(Fourier(1, None))  # fmt: skip
