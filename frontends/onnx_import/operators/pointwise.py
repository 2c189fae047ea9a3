"""Functions of single numbers, and arithmetic with broadcasting."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graphprune.frontends.onnx_import.onnx_values import NodeCall, as_tensor, dtype_of, known
from graphprune.frontends.onnx_import.operators import TRANSLATIONS, translates

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "BitwiseNot": torch.bitwise_not, "Ceil": torch.ceil, "Cos": torch.cos,
    "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "HardSwish": F.hardswish,
    "IsNaN": torch.isnan, "Log": torch.log, "Mish": F.mish, "Neg": torch.neg, "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal, "Relu": F.relu, "Round": torch.round, "Sigmoid": torch.sigmoid,
    "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh, "Softplus": F.softplus, "Softsign": F.softsign,
    "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh,
}  # fmt: skip
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add, "And": torch.logical_and, "BitwiseAnd": operator.and_, "BitwiseOr": operator.or_,
    "BitwiseXor": operator.xor, "Equal": operator.eq, "Greater": operator.gt, "GreaterOrEqual": operator.ge,
    "Less": operator.lt, "LessOrEqual": operator.le, "Mul": operator.mul, "Or": torch.logical_or,
    "Sub": operator.sub, "Xor": torch.logical_xor,
}  # fmt: skip
LOGICAL = ("And", "Or", "Xor")


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[NodeCall], Tensor]:
    return lambda call: function(call.tensor(0))


def _binary(function: Callable[[Any, Any], Any], both_tensors: bool) -> Callable[[NodeCall], Any]:
    def translate(call: NodeCall) -> Any:
        if both_tensors:
            return function(call.tensor(0), call.tensor(1))
        return function(*operands(call))

    return translate


for _name, _function in UNARY.items():
    TRANSLATIONS.register(_name)(_unary(_function))
for _name, _pair in BINARY.items():
    TRANSLATIONS.register(_name)(_binary(_pair, _name in LOGICAL))


def operands(call: NodeCall) -> tuple[Any, Any]:
    """Both operands, one of which may be a plain number."""
    if known(call.inputs[0]) is None:
        left = call.tensor(0)
        return left, call.operand(1, left.dim())
    right = call.tensor(1)
    return call.operand(0, right.dim()), right


@translates("Div")
def divide(call: NodeCall) -> Any:
    left, right = operands(call)
    whole = next(not side.is_floating_point() for side in (left, right) if isinstance(side, Tensor))
    return torch.div(left, right, rounding_mode="trunc") if whole else left / right


@translates("Mod")
def modulo(call: NodeCall) -> Any:
    left, right = call.tensor(0), call.operand(1, call.tensor(0).dim())
    return torch.fmod(left, right) if call.attribute("fmod", 0) else torch.remainder(left, right)


@translates("Pow")
def power(call: NodeCall) -> Tensor:
    base = call.tensor(0)
    raised: Tensor = torch.pow(base, call.operand(1, base.dim()))
    return raised.to(base.dtype)


@translates("Max")
def maximum(call: NodeCall) -> Any:
    return _extreme(call, torch.maximum, "min")


@translates("Min")
def minimum(call: NodeCall) -> Any:
    return _extreme(call, torch.minimum, "max")


def _extreme(call: NodeCall, function: Callable[[Tensor, Tensor], Tensor], bound: str) -> Tensor:
    """Largest or smallest of all inputs; a number is a bound."""
    order = sorted(range(len(call.inputs)), key=lambda i: known(call.inputs[i]) is not None)
    result = call.tensor(order[0])
    for index in order[1:]:
        other = call.operand(index, result.dim())
        result = function(result, other) if isinstance(other, Tensor) else torch.clamp(result, **{bound: other})
    return result


@translates("Sum")
def total(call: NodeCall) -> Tensor:
    first, *others = call.tensors()
    for other in others:
        first = first + other
    return first


@translates("Mean")
def mean(call: NodeCall) -> Any:
    return total(call) / len(call.inputs)


@translates("Clip")
def clip(call: NodeCall) -> Tensor:
    low, high = (
        call.number(index) if call.has(index) else call.attribute(name) for index, name in ((1, "min"), (2, "max"))
    )
    return call.tensor(0) if low is None and high is None else torch.clamp(call.tensor(0), low, high)


@translates("Where")
def where(call: NodeCall) -> Tensor:
    condition = call.tensor(0)
    sides = [call.operand(index, condition.dim()) for index in (1, 2)]
    if not any(isinstance(side, Tensor) for side in sides):
        sides[0] = call.tensor(1)
    typed = next(side for side in sides if isinstance(side, Tensor))
    if not typed.is_floating_point() and any(isinstance(side, float) for side in sides):
        sides = [call.tensor(1), call.tensor(2)]
    choose: Any = torch.where  # of tensors and numbers
    result: Tensor = choose(condition, *sides)
    return result.to(typed.dtype)


@translates("Cast")
def cast(call: NodeCall) -> Any:
    x, dtype = call.tensor(0), dtype_of(call.attribute("to"))
    return x if x.dtype == dtype else x.to(dtype)


@translates("CastLike")
def cast_like(call: NodeCall) -> Any:
    return call.tensor(0).to(as_tensor(call.inputs[1]).dtype)


@translates("Identity")
def identity(call: NodeCall) -> Any:
    return call.inputs[0]


@translates("Dropout")
def dropout(call: NodeCall) -> Any:
    training = call.has(2) and call.number(2)
    call.require(not training, "training mode; export the model for inference")
    call.require(_unused(call, 1), "its mask is used; export the model for inference")
    return call.inputs[0]


def _unused(call: NodeCall, index: int) -> bool:
    return len(call.node.outputs) <= index or not call.node.outputs[index].uses()


@translates("LeakyRelu")
def leaky_relu(call: NodeCall) -> Tensor:
    return F.leaky_relu(call.tensor(0), call.attribute("alpha", 0.01))


@translates("Elu")
def elu(call: NodeCall) -> Tensor:
    return F.elu(call.tensor(0), call.attribute("alpha", 1.0))


@translates("Celu")
def celu(call: NodeCall) -> Tensor:
    return F.celu(call.tensor(0), call.attribute("alpha", 1.0))


@translates("Selu")
def selu(call: NodeCall) -> Any:
    x, alpha = call.tensor(0), call.attribute("alpha", 1.67326319217681884765625)
    gamma: float = call.attribute("gamma", 1.05070102214813232421875)
    return gamma * (torch.clamp(x, min=0) + alpha * (torch.exp(torch.clamp(x, max=0)) - 1))


@translates("ThresholdedRelu")
def thresholded_relu(call: NodeCall) -> Any:
    x = call.tensor(0)
    return torch.where(x > call.attribute("alpha", 1.0), x, 0.0)


@translates("HardSigmoid")
def hard_sigmoid(call: NodeCall) -> Tensor:
    return torch.clamp(call.tensor(0) * call.attribute("alpha", 0.2) + call.attribute("beta", 0.5), 0, 1)


@translates("PRelu")
def prelu(call: NodeCall) -> Tensor:
    x = call.tensor(0)
    return torch.clamp(x, min=0) + call.tensor(1) * torch.clamp(x, max=0)


@translates("Gelu")
def gelu(call: NodeCall) -> Tensor:
    return F.gelu(call.tensor(0), approximate=call.attribute("approximate", "none"))


@translates("Swish")
def swish(call: NodeCall) -> Tensor:
    x, alpha = call.tensor(0), call.attribute("alpha", 1.0)
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(x * alpha)


@translates("Shrink")
def shrink(call: NodeCall) -> Any:
    x, bias, bound = call.tensor(0), call.attribute("bias", 0.0), call.attribute("lambd", 0.5)
    return torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, 0.0))


@translates("IsInf")
def is_infinite(call: NodeCall) -> Tensor:
    x = call.tensor(0)
    sides = [x == side for side, name in ((math.inf, "detect_positive"), (-math.inf, "detect_negative"))
             if call.attribute(name, 1)]  # fmt: skip
    return torch.logical_or(*sides) if len(sides) == 2 else sides[0] if sides else torch.zeros_like(x, dtype=torch.bool)


@translates("BitShift")
def bit_shift(call: NodeCall) -> Any:
    left, right = operands(call)
    return left << right if call.attribute("direction") == "LEFT" else left >> right
