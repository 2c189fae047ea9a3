"""Operators that work index by index: axes meet by broadcasting."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphprune.contracts import Dims, Example, Flow, Rule, Zeros
from graphprune.dimensions import argument, between, broadcast, meet, tensors
from graphprune.passes.operators import RULES, rule

aten = torch.ops.aten

KEEP_ZERO = [
    aten.relu.default, aten.relu_.default, aten.gelu.default, aten.silu.default, aten.silu_.default, aten.mish.default,
    aten.leaky_relu.default, aten.elu.default, aten.hardswish.default, aten.hardswish_.default,
    aten.relu6.default, aten.tanh.default, aten.sin.default, aten.neg.default, aten.abs.default,
    aten.sqrt.default, aten.erf.default, aten.sign.default, aten.floor.default, aten.ceil.default, aten.round.default,
    aten.trunc.default, aten.square.default, aten.expm1.default, aten.log1p.default,
    aten.dropout.default, aten.clone.default, aten.alias.default, aten.detach.default, aten.detach_.default,
    aten.contiguous.default, aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device,
    aten.lift_fresh_copy.default, aten.feature_dropout.default, aten.zeros_like.default,
]  # fmt: skip
LOSE_ZERO = [
    aten.sigmoid.default, aten.hardsigmoid.default, aten.cos.default, aten.exp.default, aten.softplus.default,
    aten.acos.default, aten.logical_not.default, aten.bitwise_not.default, aten.isnan.default,
    aten.isinf.default, aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.masked_fill.Scalar,
    aten.masked_fill.Tensor, aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar,
    aten.eq.Tensor, aten.eq.Scalar, aten.ne.Tensor, aten.ne.Scalar, aten.le.Tensor, aten.le.Scalar, aten.lt.Tensor,
    aten.lt.Scalar, aten.ge.Tensor, aten.ge.Scalar, aten.gt.Tensor, aten.gt.Scalar, aten.pow.Scalar,
    aten.maximum.default, aten.minimum.default, aten.rsub.Scalar, aten.full_like.default,
    aten.ones_like.default, aten.__and__.Tensor, aten.__or__.Tensor, aten.logical_or.default,
    aten.bitwise_or.Tensor, aten.nan_to_num.default,
]  # fmt: skip
LOGICAL = [aten.logical_and.default, aten.bitwise_and.Tensor]
ADDITIONS = [aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar]
INVERSES = [aten.rsqrt.default, aten.reciprocal.default, aten.log.default, aten.logit.default]
DEGREES = {
    **dict.fromkeys((aten.relu.default, aten.leaky_relu.default, aten.neg.default, aten.abs.default), 1.0),
    **dict.fromkeys((aten.clone.default, aten._to_copy.default), 1.0),
    aten.sqrt.default: 0.5, aten.square.default: 2.0, aten.rsqrt.default: -0.5, aten.reciprocal.default: -1.0,
}  # fmt: skip


class Elementwise(Rule):
    """Every dimension of the output is that of each input that has it."""

    def __init__(self, zeros: Zeros, summands: tuple[int, ...] = ()) -> None:
        self.zeros, self.summands = zeros, summands

    def scale(self, node: fx.Node, factor: Callable[[object], float]) -> float | None:
        """By the degree of homogeneity of the operator."""
        return factor(node.args[0]) ** DEGREES[node.target] if node.target in DEGREES else None

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        operands = [flow.dims(value) for value in tensors(node)]
        return broadcast(flow, operands)

    def examples(self) -> Iterator[Example]:
        yield Example(_Gated(), (torch.randn(2, 6),))


class Multiply(Elementwise):
    """A product is linear in both."""

    linear_in = (0, 1)
    scale = Rule.scale


class Divide(Elementwise):
    """A quotient is no number where a masked divisor is zero, so that its axis is not exact."""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        for axis in flow.dims(node.args[-1]):
            flow.normalise(axis, "it is a divisor here")
        return super().axes(flow, node)

    def scale(self, node: fx.Node, factor: Callable[[object], float]) -> float | None:
        """The quotient of the factors, unless it is rounded."""
        if node.target not in (aten.div.Tensor, aten.div.Scalar):
            return super().scale(node, factor)
        return factor(node.args[0]) / factor(node.args[1])


class Power(Elementwise):
    """A fixed power keeps zeros if it is positive."""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        exponent = node.args[1]
        if not isinstance(exponent, (int, float)) or exponent <= 0:
            for axis in flow.dims(node.args[0]):
                flow.normalise(axis, "it is a divisor here")
        return super().axes(flow, node)

    def scale(self, node: fx.Node, factor: Callable[[object], float]) -> float | None:
        """A fixed power of the factor."""
        exponent = node.args[1]
        return factor(node.args[0]) ** exponent if isinstance(exponent, int | float) else None


@rule(aten.prelu.default)
class PReLU(Rule):
    """Every channel, which is the second dimension, has a slope, or all have one."""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims, slopes = flow.dims(node.args[0]), flow.dims(node.args[1])
        for axis in slopes if len(dims) > 1 else ():
            meet(flow, [dims[1], axis])
        return dims

    def examples(self) -> Iterator[Example]:
        layers = nn.Linear(6, 8), nn.PReLU(5), nn.Linear(8, 4)
        yield Example(nn.Sequential(*layers), (torch.randn(2, 5, 6),))
        yield Example(nn.Sequential(nn.Conv1d(3, 8, 1), nn.PReLU(8), nn.Conv1d(8, 4, 1)), (torch.randn(2, 3, 8),))


@rule(aten.type_as.default)
class TypeAs(Rule):
    """The numbers of the first, in the type of the second."""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        return flow.dims(node.args[0])

    def examples(self) -> Iterator[Example]:
        yield between(lambda y: y * torch.ones(8, dtype=torch.int64).type_as(y))


class Clip(Elementwise):
    """Zeros stay where they lie within the bounds."""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
        if not low <= 0 <= high:
            for axis in flow.dims(node.args[0]):
                flow.normalise(axis, "zeros become another number here")
        return super().axes(flow, node)

    def examples(self) -> Iterator[Example]:
        yield between(lambda y: nn.functional.hardtanh(y, -0.5, 2.0))
        yield between(lambda y: nn.functional.hardtanh(y, 0.5, 2.0))


RULES.register(*KEEP_ZERO)(Elementwise(Zeros.KEPT))
RULES.register(aten.hardtanh.default, aten.hardtanh_.default)(Clip(Zeros.KEPT))
RULES.register(*LOSE_ZERO)(Elementwise(Zeros.LOST))
RULES.register(aten.mul.Tensor, aten.mul.Scalar)(Multiply(Zeros.PRODUCT))
RULES.register(*LOGICAL)(Elementwise(Zeros.PRODUCT))
RULES.register(*ADDITIONS)(Elementwise(Zeros.KEPT, summands=(0, 1)))
RULES.register(*INVERSES)(Divide(Zeros.LOST))
RULES.register(aten.div.Tensor, aten.div.Scalar, aten.div.Tensor_mode)(Divide(Zeros.KEPT))
RULES.register(aten.pow.Tensor_Scalar)(Power(Zeros.KEPT))
RULES.register(aten.pow.Tensor_Tensor)(Power(Zeros.LOST))


class _Gated(nn.Module):
    """An example: two branches that meet in a product and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        a, b = self.a(x), self.b(x)
        return self.out(torch.sigmoid(a) * b + torch.relu(a) / 2 - b**2)
