"""Operators that write or read by index, products with stretched letters, and masks."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.fuzz.layers import Constant, Indexed, Scale
from tests.fuzz.numbers import deep
from tests.fuzz.world import Dice, Made, floating, operation

REDUCTIONS = ("sum", "amax", "amin", "prod", "mean")


def slots(dice: Dice, size: int) -> tuple[Tensor, int]:
    """An index for each of `size` places, and the number of slots into which they point."""
    count = dice.pick((2, 3, size))
    return torch.tensor([dice.pick(range(count)) for _ in range(size)]), count


@operation(deep)
def scatter(dice: Dice, x: Tensor) -> Made:
    """Values are written to slots of a dimension, added to them, or combined otherwise."""
    dim = dice.dim(x, 1)
    index, count = slots(dice, x.shape[dim])
    shape = [-1 if i == dim else 1 for i in range(x.dim())]
    reduce, own, start = dice.pick(REDUCTIONS), dice.yes(), dice.pick((0.0, 0.0, 0.5))

    def write(x: Tensor, index: Tensor, how: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        sizes = [count if i == dim else n for i, n in enumerate(x.shape)]
        return how(x.new_full(sizes, start), index.view(shape).expand(x.shape), x)

    kinds: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
        lambda base, index, x: base.scatter_reduce(dim, index, x, reduce, include_self=own),
        lambda base, index, x: base.scatter_add(dim, index, x),
        lambda base, index, x: base.scatter(dim, index, x),
        lambda base, index, x: base.scatter(dim, index, x, reduce="add"),
        lambda base, index, x: base.scatter(dim, index, x, reduce="multiply"),
    ]
    how = dice.pick(kinds)
    return dice.keep(Indexed(index, lambda x, index: write(x, index, how)))


@operation(deep)
def write_rows(dice: Dice, x: Tensor) -> Made:
    """Slices are added to slots of a dimension, or put there."""
    dim = dice.dim(x, 1)
    index, count = slots(dice, x.shape[dim])
    before: tuple[Any, ...] = (slice(None),) * dim
    start, alpha = dice.pick((0.0, 0.0, 0.5)), dice.pick((1, 2, -1))

    def base(x: Tensor) -> Tensor:
        return x.new_full([count if i == dim else n for i, n in enumerate(x.shape)], start)

    def put(x: Tensor, index: Tensor) -> Tensor:
        y = base(x)
        y[(*before, index)] = x
        return y

    kinds: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, i: base(x).index_add(dim, i, x, alpha=alpha), lambda x, i: base(x).index_copy(dim, i, x), put,
        lambda x, i: base(x).index_put((*[None] * dim, i), x, accumulate=True),
        lambda x, i: base(x).index_reduce(dim, i, x, "amax"),
    ]  # fmt: skip
    return dice.keep(Indexed(index, dice.pick(kinds)))


@operation(deep)
def gathered(dice: Dice, x: Tensor) -> Made:
    """Places of a dimension are read by a stored index, or by an index that a value selects."""
    dim = dice.dim(x, 1)
    index = torch.tensor([dice.pick(range(x.shape[dim])) for _ in range(dice.pick((x.shape[dim], 2, 3)))])
    shape = [-1 if i == dim else 1 for i in range(x.dim())]
    kinds: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, i: x.gather(dim, i.view(shape).expand([*x.shape[:dim], -1, *x.shape[dim + 1 :]])),
        lambda x, i: x.take_along_dim(i.view(shape), dim), lambda x, i: x.index_select(dim, i),
        lambda x, i: x.gather(dim, x.argmax(dim, keepdim=True)), lambda x, i: x.masked_scatter(x > 0.2, x.abs()),
    ]  # fmt: skip
    return dice.keep(Indexed(index, dice.pick(kinds)))


@operation()
def stretched(dice: Dice, x: Tensor) -> Made:
    """A product with a parameter in which a letter of the equation has size 1."""
    features, size = x.shape[-1], dice.size()
    options: list[tuple[tuple[int, ...], Callable[[Tensor, Tensor], Tensor]]] = [
        ((size, 1), lambda x, w: torch.einsum("...i,oi->...o", x, w)),
        ((1, features), lambda x, w: torch.einsum("...i,oi->...i", x, w)),
        ((1, size), lambda x, w: torch.einsum("...i,io->...o", torch.sigmoid(x), w)),
        ((features, 1), lambda x, w: torch.einsum("...i,ij->...i", x, w)),
        ((size, 1), lambda x, w: torch.tensordot(x, w, ([-1], [1]))),
        ((1, features), lambda x, w: F.cosine_similarity(x, w.expand_as(x[..., :1] * w), -1)[..., None]),
    ]
    shape, f = dice.pick(options)
    return dice.keep(dice.pick((Scale, Scale, Constant))(shape, f))


@operation(lambda x: floating(x) and x.shape[-1] > 1)
def banned(dice: Dice, x: Tensor) -> Made:
    """Some entries become a mark: minus infinity, the least number, or a large negative one."""
    kept = torch.tensor([dice.pick((True, True, False)) for _ in range(x.shape[-1])])
    mark = dice.pick((-1e4, -1e3, -5e3))
    kinds: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, kept: x.masked_fill(~kept, mark), lambda x, kept: torch.where(kept, x, mark),
        lambda x, kept: x.masked_fill(~kept, -1e9).softmax(-1),
        lambda x, kept: torch.where(kept, x, torch.finfo(x.dtype).min).softmax(-1),
    ]  # fmt: skip
    return dice.keep(Indexed(kept, dice.pick(kinds)))


@operation(lambda x: x.dtype == torch.bool)
def kept(dice: Dice, x: Tensor) -> Made:
    """A vector for each place that is true, and another one for each that is not."""
    size = dice.size()
    both = Scale((2, size), lambda x, w: torch.where(x[..., None], w[0], w[1]))
    return dice.keep(dice.pick((both, Scale((size,), lambda x, w: x[..., None] * w))))
