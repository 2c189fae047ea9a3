"""Element-wise operators: axes are unified by broadcasting."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from graphprune.axes.rule import Dims, Example, Flow, MaskedArguments, Rule, Zeros
from graphprune.axes.rule_helpers import between_layers, broadcast, broadcast_axis, literal, tensor_inputs
from graphprune.passes.operators import RULES, rule

aten = torch.ops.aten

PRODUCTS = [aten.mul.Tensor, aten.mul.Scalar, aten.multiply.Tensor, aten.multiply.Scalar]
CONJUNCTIONS = [aten.logical_and.default, aten.bitwise_and.Tensor, aten.__and__.Tensor]
QUOTIENTS = [
    aten.div.Tensor, aten.div.Scalar, aten.div.Tensor_mode, aten.div.Scalar_mode, aten.divide.Tensor,
    aten.divide.Scalar, aten.divide.Tensor_mode, aten.true_divide.Tensor, aten.floor_divide.default,
    aten.floor_divide.Scalar, aten.fmod.Tensor, aten.fmod.Scalar, aten.remainder.Tensor, aten.remainder.Scalar,
]  # fmt: skip
CHOICES = [
    aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar,
    aten.masked_fill.Scalar, aten.masked_fill.Tensor,
]  # fmt: skip
FILLED = [
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.zero.default, aten.fill.Scalar,
]  # fmt: skip
#: Element-wise operators that torch does not tag as pointwise.
UNTAGGED = [
    aten.relu_.default, aten.silu_.default, aten.hardswish.default, aten.hardswish_.default,
    aten.hardtanh.default, aten.hardtanh_.default,
    aten.mish.default, aten.log_sigmoid.default, aten.relu6.default, aten.selu.default, aten.rrelu.default,
    aten.clone.default, aten.alias.default, aten.detach.default, aten.detach_.default, aten.contiguous.default,
    aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.lift_fresh_copy.default,
    aten.square.default, aten.absolute.default,
    aten.negative.default, aten.subtract.Tensor, aten.subtract.Scalar, aten.isnan.default, aten.isclose.default,
    aten.__or__.Tensor,
    aten.greater.Tensor, aten.greater.Scalar, aten.greater_equal.Tensor, aten.greater_equal.Scalar, aten.less.Tensor,
    aten.less.Scalar, aten.less_equal.Tensor, aten.less_equal.Scalar, aten.not_equal.Tensor, aten.not_equal.Scalar,
]  # fmt: skip
DEGREES: dict[Any, float] = {
    **dict.fromkeys((aten.relu.default, aten.leaky_relu.default, aten.neg.default, aten.abs.default), 1.0),
    **dict.fromkeys((aten.clone.default, aten._to_copy.default), 1.0),
    aten.sqrt.default: 0.5, aten.square.default: 2.0, aten.rsqrt.default: -0.5, aten.reciprocal.default: -1.0,
}  # fmt: skip
#: Sample numbers for inputs at masked indices, and for all other inputs.
ANY = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
ORDINARY = (1.0, 2.0, 3.0)


class Elementwise(Rule):
    """Operators with broadcast inputs; the number at masked indices is computed by running the operator."""

    rowwise = True
    zeros = Zeros.LOST  # the masked number is computed instead

    def scale(self, node: fx.Node, factor: Callable[[object], float]) -> float | None:
        """The factor raised to the operator's degree of homogeneity."""
        degree = node.args[1] if node.target is aten.pow.Tensor_Scalar else DEGREES.get(node.target)
        return factor(node.args[0]) ** degree if isinstance(degree, int | float) else None

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        return broadcast(flow, [flow.dims(value) for value in tensor_inputs(node)])

    def masked_value(self, node: fx.Node, inputs: MaskedArguments) -> float | None:
        values = [trial_numbers(value, inputs) for value in tensor_inputs(node)]
        literals = [x for x in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(x, float)]
        results = compute(node, values)
        if not isfinite(results).all():
            return math.nan if all(map(math.isfinite, literals)) else None
        determined = all(len(numbers) == 1 for numbers in values) and not has_dynamic_literal(node)
        number = complex(results.item()) if determined else 1j
        return None if number.imag else number.real

    def examples(self) -> Iterator[Example]:
        yield Example(_Gated(), (torch.randn(2, 6),))
        yield between_layers(lambda y: y * ((y > 0) & (y.abs() < 1)))
        yield between_layers(lambda y: torch.erfc(y) / (1 + torch.exp(-y)) * torch.lerp(y, y.tan(), 0.5))
        yield between_layers(lambda y: nn.functional.hardtanh(y, -0.5, 2.0).sum(2, keepdim=True) * y / 2)
        yield between_layers(lambda y: nn.functional.hardtanh(y, 0.5, 2.0).sum(2, keepdim=True) * y)


class LogicalAnd(Elementwise):
    """Logical and: zero where any argument is."""

    zeros = Zeros.PRODUCT

    def masked_value(self, node: fx.Node, inputs: MaskedArguments) -> float | None:
        if any(inputs.number_of(value) == 0 for value in node.args[:2]):
            return 0.0
        known = all(inputs.number_of(value) is not None for value in node.args)
        return super().masked_value(node, inputs) if known else None


class Multiplication(LogicalAnd):
    """Product: zero where any factor is, and linear in both."""

    linear_in = (0, 1)
    scale = Rule.scale


class Division(Elementwise):
    """Quotient: zero where the dividend is and the divisor is not."""

    def masked_value(self, node: fx.Node, inputs: MaskedArguments) -> float | None:
        number = super().masked_value(node, inputs)
        return 0.0 if number is None and inputs.number_of(node.args[0]) == 0 else number

    def scale(self, node: fx.Node, factor: Callable[[object], float]) -> float | None:
        """The quotient of the factors, unless it is rounded."""
        if node.target not in (aten.div.Tensor, aten.div.Scalar):
            return super().scale(node, factor)
        return factor(node.args[0]) / factor(node.args[1])


class Dropout(Elementwise):
    """Dropout: zeros remain zero, other numbers may become zero."""

    zeros = Zeros.PRESERVED
    masked_value = Rule.masked_value

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        for axis in flow.dims(node.args[0]) if literal(node, 2) else ():  # in training mode
            flow.pin(axis, "its values are drawn at random")
        return flow.dims(node.args[0])

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: nn.functional.dropout1d(y, training=False))


class Where(Elementwise):
    """Choice between two values: known at masked indices if both are equal there."""

    def masked_value(self, node: fx.Node, inputs: MaskedArguments) -> float | None:
        values = (node.args[0], node.args[2]) if node.target in CHOICES[4:] else node.args[1:3]
        first, second = (inputs.number_of(value) for value in values)
        return first if first == second and first is not None and math.isfinite(first) else None

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: torch.where(torch.arange(5)[:, None] > 2, y, 0.0).sum(2, keepdim=True) + y)


class FillLike(Elementwise):
    """One number in the shape of the input, whatever its values."""

    shape_alone = True

    def masked_value(self, node: fx.Node, inputs: MaskedArguments) -> float | None:
        number = compute(node, [(0.0,)]).item()
        return float(number) if math.isfinite(number) and not has_dynamic_literal(node) else None

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: (torch.zeros_like(y).sum(2, keepdim=True) + 1) * y)
        yield between_layers(_partly_zeroed)


def trial_numbers(value: fx.Node, inputs: MaskedArguments) -> tuple[float, ...]:
    """The known number of an input at masked indices, or sample numbers in its place."""
    known = inputs.number_of(value)
    return (known,) if known is not None else ANY if value in inputs.carriers - inputs.repeated else ORDINARY


def has_dynamic_literal(node: fx.Node) -> bool:
    """Whether a literal of the call is a size that depends on the input."""
    return len(node.all_input_nodes) > sum(1 for _ in tensor_inputs(node))


def compute(node: fx.Node, values: Sequence[tuple[float, ...]]) -> Tensor:
    """Results of the operator for all combinations of the values of its inputs."""
    new: dict[fx.Node, Any] = dict.fromkeys(node.all_input_nodes, 2)  # for dynamic sizes
    for i, (old, numbers) in enumerate(zip(tensor_inputs(node), values, strict=True)):
        shape = [1] * i + [len(numbers)] + [1] * (len(values) - i - 1)
        new[old] = torch.tensor(numbers).to(old.meta["val"].dtype).reshape(shape if len(numbers) > 1 else ())
    try:
        args, kwargs = pytree.tree_map_only(fx.Node, new.__getitem__, (node.args, dict(node.kwargs)))
        return torch.as_tensor(
            cast(Any, node.target)(*args, **kwargs | ({"device": "cpu"} if "device" in kwargs else {}))
        )
    except RuntimeError:  # an integer was divided by zero
        return torch.tensor(math.nan)


def isfinite(x: Tensor) -> Tensor:
    """Mask of the finite entries; true for integers."""
    return torch.isfinite(x) if x.is_floating_point() or x.is_complex() else torch.ones_like(x, dtype=torch.bool)


def pointwise() -> Iterator[Any]:
    """Operators that torch tags as pointwise, without those that are in place or do not return a single tensor."""
    for name in torch._C._dispatch_get_all_op_names():
        base, _, overload = name.removeprefix("aten::").partition(".")
        operator = getattr(getattr(aten, base), overload or "default") if name.startswith("aten::") else None
        if operator is None or torch.Tag.pointwise not in operator.tags or operator._schema.is_mutable:
            continue
        if [str(value.type) for value in operator._schema.returns] == ["Tensor"]:
            yield operator


@rule(aten.prelu.default)
class PReLU(Rule):
    """PReLU with one slope per channel, the second dimension, or a single one."""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims, slopes = flow.dims(node.args[0]), flow.dims(node.args[1])
        for axis in slopes if len(dims) > 1 else ():
            broadcast_axis(flow, [dims[1], axis])
        return dims

    def examples(self) -> Iterator[Example]:
        layers = nn.Linear(6, 8), nn.PReLU(5), nn.Linear(8, 4)
        yield Example(nn.Sequential(*layers), (torch.randn(2, 5, 6),))
        yield Example(nn.Sequential(nn.Conv1d(3, 8, 1), nn.PReLU(8), nn.Conv1d(8, 4, 1)), (torch.randn(2, 3, 8),))


@rule(aten.type_as.default)
class TypeAs(Rule):
    """The first argument cast to the type of the second."""

    rowwise = True

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        return flow.dims(node.args[0])

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y * torch.ones(8, dtype=torch.int64).type_as(y))


RULES.register(*CONJUNCTIONS)(LogicalAnd())
RULES.register(*PRODUCTS)(Multiplication())
RULES.register(*QUOTIENTS)(Division())
RULES.register(*FILLED)(FillLike())
RULES.register(*CHOICES)(Where())
RULES.register(aten.dropout.default, aten.feature_dropout.default)(Dropout())
RULES.register(*UNTAGGED)(Elementwise())
RULES.register(*(operator for operator in pointwise() if not {operator, str(operator)} & RULES.own.keys()))(
    Elementwise()
)


class _Gated(nn.Module):
    """An example: two branches joined by a product and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        a, b = self.a(x), self.b(x)
        return self.out(torch.sigmoid(a) * b + torch.relu(a) / 2 - b**2)


def _partly_zeroed(y: Tensor) -> Tensor:
    """The input with zeros in the second half of its channels."""
    y = y.clone()
    y[..., 4:].zero_()
    return y
