"""Operators on numbers: element by element, of two values, along a dimension, and products of values."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.fuzz.layers import Constant, Scale
from tests.fuzz.world import Dice, Made, floating, operation

UNARY: list[Callable[[Tensor], Tensor]] = [
    F.relu, torch.tanh, F.gelu, F.silu, torch.sigmoid, torch.abs, torch.neg, torch.square, F.softplus,
    lambda x: 2 * x + 1, lambda x: 1 - x, lambda x: x / 3, lambda x: x.clamp(-0.5, 0.5), lambda x: x.clamp(min=0.1),
    lambda x: F.hardtanh(x, -0.5, 0.5), lambda x: F.leaky_relu(x, 0.2), F.elu, lambda x: torch.log1p(x.abs()),
    lambda x: torch.rsqrt(x.square() + 1), lambda x: 1 / (x.abs() + 1), torch.cos, torch.sin, F.hardswish, F.relu6,
    lambda x: torch.exp(torch.tanh(x)), lambda x: torch.sqrt(x.abs()), lambda x: x.masked_fill(x > 0.3, -1.0),
    lambda x: torch.where(x > 0, x, 0.5), lambda x: x * (x > 0.1), lambda x: torch.tanh(x) ** 3, F.mish, F.selu,
    lambda x: torch.nan_to_num(x).clone(), lambda x: x.float().double(), lambda x: x.add(1.0).relu_(),
    lambda x: x - x.detach(), lambda x: x.clone().mul_(2), lambda x: F.dropout(x, 0.5, training=False), F.softsign,
    lambda x: torch.maximum(x, -x), lambda x: torch.expm1(torch.tanh(x)), lambda x: x.sign() * x, F.logsigmoid,
    lambda x: F.hardshrink(x, 0.2), lambda x: F.threshold(x, 0.1, 0.0), lambda x: x.clamp(0.5, 1.0), torch.erf,
    lambda x: torch.full_like(x, 0.5) * x, lambda x: x + x.new_ones(x.shape[-1]), lambda x: (x != 0) * 2.0 + x,
    lambda x: x % 0.7, torch.atan, lambda x: torch.addcmul(x, x, x, value=0.5), lambda x: torch.lerp(x, x.tanh(), 0.3),
]  # fmt: skip
BINARY: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.add, torch.mul, torch.sub, lambda a, b: a * torch.sigmoid(b), lambda a, b: F.silu(a) * b, torch.maximum,
    torch.minimum, lambda a, b: a / (1 + b.square()), lambda a, b: torch.where(a > b, a, b), lambda a, b: a + 2 * b,
    lambda a, b: torch.where(b > 0, a, 0.0), lambda a, b: a.masked_fill(b > 0.2, 0.0), lambda a, b: b * a + a,
    lambda a, b: torch.addcdiv(a, b, 1 + b.abs()), lambda a, b: torch.atan2(a, 1 + b.abs()), torch.hypot,
]  # fmt: skip


def alike(x: Tensor, y: Tensor) -> bool:
    """Do the two broadcast?"""
    pairs = zip(reversed(x.shape), reversed(y.shape), strict=False)
    return all(a == b or 1 in (a, b) for a, b in pairs)


def contracting(x: Tensor, y: Tensor) -> bool:
    """Can each row of one meet each row of the other, batch by batch?"""
    return x.dim() == y.dim() >= 2 and x.shape[-1] == y.shape[-1] and x.shape[:-2] == y.shape[:-2]


def chained(x: Tensor, y: Tensor) -> bool:
    """Can the one be multiplied by the other, as it stands?"""
    return x.dim() == y.dim() >= 2 and x.shape[-1] == y.shape[-2] and x.shape[:-2] == y.shape[:-2]


def deep(x: Tensor) -> bool:
    """Has it more dimensions than the batch?"""
    return floating(x) and x.dim() > 1


@operation()
def unary(dice: Dice, x: Tensor) -> Made:
    """An activation, or arithmetic with a number."""
    return dice.pick(UNARY)


@operation()
def constant(dice: Dice, x: Tensor) -> Made:
    """Numbers made from nothing meet a value."""
    size = x.shape[-1]
    made: list[Made] = [
        lambda x: x + torch.ones(size), lambda x: torch.cat((x, torch.zeros(*x.shape[:-1], 2)), -1),
        lambda x: x * torch.full((size,), 0.5), lambda x: torch.cat((x.new_ones(*x.shape[:-1], size), x), -1),
        lambda x: x + torch.zeros_like(x) + torch.linspace(0, 1, size), lambda x: x * x.new_full((1, size), 2.0),
        lambda x: torch.zeros(size).type_as(x).expand_as(x) + x, lambda x: x.new_zeros(size).cos() * x,
    ]  # fmt: skip
    return dice.pick(made)


@operation(partner=alike)
def binary(dice: Dice, x: Tensor, y: Tensor) -> Made:
    """A sum, a gate, or a choice between two."""
    return dice.pick(BINARY)


@operation(partner=alike)
def add(dice: Dice, x: Tensor, y: Tensor) -> Made:
    """A residual."""
    return torch.add


@operation(partner=alike)
def gate(dice: Dice, x: Tensor, y: Tensor) -> Made:
    """A product."""
    return torch.mul


@operation()
def scale(dice: Dice, x: Tensor) -> Made:
    """A parameter or a buffer for some dimensions, the others broadcast."""
    first = dice.dim(x, 1 if x.dim() > 1 else 0)
    shape = tuple(1 if dice.yes() else n for n in x.shape[first:])
    return dice.keep(dice.pick((Scale, Constant))(shape, dice.pick(BINARY)))


@operation()
def reduce(dice: Dice, x: Tensor) -> Made:
    """One or two dimensions become one number."""
    kind = dice.pick(("sum", "mean", "amax", "amin", "var", "std", "logsumexp", "norm", "prod", "max"))
    dim, keep = dice.dim(x, 1 if x.dim() > 1 else 0), dice.yes()
    dims = (dim, (dim + 1) % x.dim()) if x.dim() > 2 and dice.yes() and kind not in ("prod", "max") else (dim,)
    if dice.pick(range(8)) == 7:
        return lambda x: x * x.mean()
    if kind == "norm":
        return lambda x: torch.linalg.vector_norm(x, dim=dims, keepdim=keep)
    if kind == "prod":
        return lambda x: torch.tanh(x).prod(dim, keepdim=keep)
    if kind == "max":
        return lambda x: x.max(dim, keepdim=keep).values
    return lambda x: getattr(x, kind)(dim=dims, keepdim=keep)


@operation()
def softmax(dice: Dice, x: Tensor) -> Made:
    """A dimension is normalised."""
    dim = dice.dim(x)
    return dice.pick(
        (
            lambda x: x.softmax(dim),
            lambda x: x.log_softmax(dim),
            lambda x: F.normalize(x, dim=dim),
            lambda x: F.softmin(x, dim),
        )
    )


@operation()
def along(dice: Dice, x: Tensor) -> Made:
    """The order of the indices of a dimension matters."""
    dim = dice.dim(x)
    functions: list[Made] = [
        lambda x: x.cumsum(dim), lambda x: x.flip(dim), lambda x: x.roll(1, dim), lambda x: x.sort(dim).values,
        lambda x: x.topk(2, dim).values, lambda x: torch.diff(x, dim=dim), lambda x: x.cummax(dim).values,
        lambda x: x * torch.arange(x.shape[-1]), lambda x: x.gather(dim, x.argsort(dim)),
        lambda x: torch.fft.rfft(x, dim=dim).abs(), lambda x: x.unfold(dim, 2, 1), lambda x: x.cumprod(dim),
        lambda x: torch.logcumsumexp(x, dim), lambda x: x @ torch.eye(x.shape[-1], dtype=x.dtype),
    ]  # fmt: skip
    return dice.pick([*functions, torch.tril, torch.triu] if x.dim() > 1 else functions)


@operation(deep, contracting)
def pairs(dice: Dice, x: Tensor, y: Tensor) -> Made:
    """Every row of one with every row of the other: scores."""
    made: list[Made] = [
        lambda x, y: x @ y.mT, lambda x, y: torch.einsum("...ik,...jk->...ij", x, y), lambda x, y: (y @ x.mT).mT / 2,
        torch.cdist, lambda x, y: F.cosine_similarity(x[..., None, :], y[..., None, :, :], dim=-1),
    ]  # fmt: skip
    return dice.pick(made)


@operation(deep, chained)
def product(dice: Dice, x: Tensor, y: Tensor) -> Made:
    """A matrix product of two values."""
    made: list[Made] = [torch.matmul, torch.bmm, lambda x, y: torch.einsum("bik,bkj->bij", x, y)]
    return dice.pick(made) if x.dim() == 3 else torch.matmul


@operation(deep, lambda x, y: x.dim() == y.dim() == 2 and x.shape[0] == y.shape[0])
def outer(dice: Dice, x: Tensor, y: Tensor) -> Made:
    """Every feature of one with every feature of the other."""
    return dice.pick((lambda x, y: x[:, :, None] * y[:, None], lambda x, y: torch.einsum("bi,bj->bij", x, y)))


@operation(lambda x: deep(x) and x.dim() == 3)
def attend(dice: Dice, x: Tensor) -> Made:
    """Attention of a value to itself, without projections."""
    if dice.yes():
        return lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]
    return lambda x: (x @ x.mT).softmax(-1) @ x


@operation(lambda x: deep(x) and x.dim() == 3, lambda x, y: x.dim() == y.dim() and x.shape[::2] == y.shape[::2])
def cross(dice: Dice, x: Tensor, y: Tensor) -> Made:
    """Attention of one value to another, with or without heads."""
    heads = dice.part(x.shape[-1]) if dice.yes() else 1

    def f(x: Tensor, y: Tensor) -> Tensor:
        q, k = (t.view(*t.shape[:2], heads, -1).transpose(1, 2) for t in (x, y))
        return F.scaled_dot_product_attention(q, k, k).transpose(1, 2).flatten(2)

    return f
