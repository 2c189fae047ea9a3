"""Complex numbers: pairs of real ones along a last dimension that is always two."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphprune.axes.algebra import prime
from graphprune.axes.rule import Dims, Example, Flow, Rule
from graphprune.axes.rule_helpers import broadcast
from graphprune.passes.operators import RULES, rule

aten = torch.ops.aten
PAIR = "real and imaginary parts lie along it"


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
    """Real and imaginary part."""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        return broadcast(flow, [flow.dims(value) for value in node.args[:2]])

    def examples(self) -> Iterator[Example]:
        yield Example(_Parts(), (torch.randn(2, 6),))


@rule(aten.polar.default)
class Polar(FromParts):
    """Length and angle: a length of zero is enough for a zero."""

    selects = (1,)

    def examples(self) -> Iterator[Example]:
        yield Example(_Rotary(), (torch.randn(2, 5, 6),))


class ComplexPart(Rule):
    """One part of a complex number, or its conjugate: zero where the number is."""

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
    """An example: pairs of channels turned by angles that grow with the position."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(6, 4)
        self.frequencies = nn.Buffer(torch.tensor([1.0, 0.7, 0.5, 0.1]))

    def forward(self, x: Tensor) -> Any:
        angles = torch.arange(5)[:, None] * self.frequencies
        turn = torch.polar(torch.ones_like(angles), angles)[:, None]
        q, k = (self._turned(y, turn) for y in (self.q(x), self.k(x)))
        return torch.softmax(q @ k.transpose(1, 2), -1) @ self.v(x)

    def _turned(self, y: Tensor, turn: Tensor) -> Tensor:
        pairs = torch.view_as_complex(y.reshape(-1, 5, 2, 4, 2))
        return torch.view_as_real(pairs * turn).flatten(2)


class _Parts(nn.Module):
    """An example: the parts of a complex product, apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        z = torch.complex(self.a(x), self.b(x))
        return self.c((z * z.conj()).real + z.imag)
