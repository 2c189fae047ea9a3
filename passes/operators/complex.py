"""Complex numbers: pairs of real ones along a last dimension of size 2."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphprune.axes.algebra import prime
from graphprune.axes.rule import Dims, Example, Flow, MaskedArguments, Rule
from graphprune.axes.rule_helpers import broadcast
from graphprune.passes.operators import RULES, rule

aten = torch.ops.aten
PAIR = "it holds real and imaginary parts"


class ToComplex(Rule):
    """``(... 2) -> (...)``"""

    degree = 1.0

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        *dims, pair = flow.dims(node.args[0])
        flow.pin(pair, PAIR)
        return tuple(dims)

    def examples(self) -> Iterator[Example]:
        yield Example(_Rotary(), (torch.randn(2, 5, 6),))


RULES.register(aten.view_as_complex.default, aten.view_as_complex_copy.default)(ToComplex())


class ToReal(Rule):
    """``(...) -> (... 2)``"""

    degree = 1.0

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        return *flow.dims(node.args[0]), prime(2, PAIR)


RULES.register(aten.view_as_real.default, aten.view_as_real_copy.default)(ToReal())


@rule(aten.complex.default)
class FromParts(Rule):
    """A complex value from its real and imaginary part."""

    summands: tuple[int, ...] = (0, 1)

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        return broadcast(flow, [flow.dims(value) for value in node.args[:2]])

    def examples(self) -> Iterator[Example]:
        yield Example(_Parts(), (torch.randn(2, 6),))


@rule(aten.polar.default)
class Polar(FromParts):
    """A complex value from length and angle: it is zero where the length is."""

    summands = ()

    def masked_value(self, node: fx.Node, inputs: MaskedArguments) -> float | None:
        return 0.0 if inputs.number_of(node.args[0]) == 0 else None

    def examples(self) -> Iterator[Example]:
        yield Example(_Rotary(), (torch.randn(2, 5, 6),))


class ComplexPart(Rule):
    """The real part, imaginary part or conjugate of a complex value: zero where the value is."""

    degree = 1.0

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        return flow.dims(node.args[0])

    def examples(self) -> Iterator[Example]:
        yield Example(_Parts(), (torch.randn(2, 6),))


RULES.register(
    aten.real.default, aten.imag.default, aten._conj.default, aten.conj.default, aten.resolve_conj.default,
    aten.resolve_neg.default,
)(ComplexPart())  # fmt: skip


class _Rotary(nn.Module):
    """An example: pairs of channels rotated by angles proportional to the position."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(6, 4)
        self.frequencies = nn.Buffer(torch.tensor([1.0, 0.7, 0.5, 0.1]))

    def forward(self, x: Tensor) -> Any:
        angles = torch.arange(5)[:, None] * self.frequencies
        rotation = torch.polar(torch.ones_like(angles), angles)[:, None]
        q, k = (self._rotated(y, rotation) for y in (self.q(x), self.k(x)))
        return torch.softmax(q @ k.transpose(1, 2), -1) @ self.v(x)

    def _rotated(self, y: Tensor, rotation: Tensor) -> Tensor:
        pairs = torch.view_as_complex(y.reshape(-1, 5, 2, 4, 2))
        return torch.view_as_real(pairs * rotation).flatten(2)


class _Parts(nn.Module):
    """An example: real and imaginary part of a complex product."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        z = torch.complex(self.a(x), self.b(x))
        return self.c((z * z.conj()).real + z.imag)
