"""Operators that only arrange: views, permutations, segments, tables read by index, windows."""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.fuzz.numbers import deep
from tests.fuzz.world import SIZES, Dice, Made, floating, operation


def image(x: Tensor) -> bool:
    """Has it a batch, channels, height and width?"""
    return floating(x) and x.dim() == 4


def line(x: Tensor) -> bool:
    """Has it a batch, channels and a length?"""
    return floating(x) and x.dim() == 3


def together(x: Tensor, y: Tensor) -> bool:
    """Can the two be concatenated along some dimension?"""
    return x.dim() == y.dim() > 1 and sum(a != b for a, b in zip(x.shape, y.shape, strict=True)) <= 1


@operation(deep)
def permute(dice: Dice, x: Tensor) -> Made:
    """Two dimensions change places, or all but the batch."""
    if dice.yes():
        order = [0, *sorted(range(1, x.dim()), key=lambda _: dice.pick(range(7)))]
        return lambda x: x.permute(order)
    a, b = dice.dim(x, 1), dice.dim(x, 0 if dice.pick(range(8)) == 7 else 1)
    return dice.pick((lambda x: x.transpose(a, b), lambda x: x.movedim(a, b)))


@operation(deep)
def unflatten(dice: Dice, x: Tensor) -> Made:
    """A dimension becomes two."""
    dim = dice.dim(x, 1)
    outer = dice.part(x.shape[dim])
    sizes = dice.pick([(outer, -1), (-1, x.shape[dim] // outer), (outer, x.shape[dim] // outer)])
    return lambda x: x.unflatten(dim, sizes)


@operation(deep)
def flatten(dice: Dice, x: Tensor) -> Made:
    """Neighbouring dimensions become one, now and then with the batch."""
    start = dice.dim(x, 0 if dice.pick(range(5)) == 4 else 1)
    stop = dice.pick(range(start, x.dim()))
    return lambda x: x.flatten(start, stop)


@operation(deep)
def reshape(dice: Dice, x: Tensor) -> Made:
    """All but the batch is laid out anew: sizes may be literal, inferred, or asked of the value."""
    rest, sizes = prod(x.shape[1:]), list[int]()
    for _ in range(dice.pick((1, 2, 3))):
        sizes.append(dice.pick([n for n in (*SIZES, *x.shape[1:]) if rest % n == 0] or [1]))
        rest //= sizes[-1]
    sizes.insert(dice.pick(range(len(sizes) + 1)), -1 if dice.yes() else rest)
    if -1 in sizes or dice.yes():
        return lambda x: x.reshape(x.shape[0], *sizes)
    return lambda x: x.reshape(-1, *sizes)


@operation(deep)
def rows(dice: Dice, x: Tensor) -> Made:
    """The batch takes part in a view, and is taken out again or not."""
    size = x.shape[1]
    if dice.yes():
        return lambda x: torch.tanh(x.reshape(-1, *x.shape[2:])).view(x.shape)
    return lambda x: x.reshape(x.shape[0] * size, *x.shape[2:])


@operation(lambda x: deep(x) and x.dim() == 3)
def windows(dice: Dice, x: Tensor) -> Made:
    """The second dimension becomes windows beside the batch."""
    size = dice.part(x.shape[1])
    return lambda x: x.reshape(x.shape[0] * (x.shape[1] // size), size, x.shape[2])


@operation()
def unsqueeze(dice: Dice, x: Tensor) -> Made:
    """A dimension of size 1, left so, stretched or repeated."""
    dim, times = dice.dim(x) + 1, dice.size()
    return dice.pick(
        (
            lambda x: x.unsqueeze(dim),
            lambda x: x.unsqueeze(dim).expand(*[-1] * dim, times, *[-1] * (x.dim() - dim)),
            lambda x: x.unsqueeze(dim).repeat(*[1] * dim, times, *[1] * (x.dim() - dim)),
        )
    )


@operation()
def squeeze(dice: Dice, x: Tensor) -> Made:
    """Dimensions of size 1 are taken out."""
    dim = dice.dim(x, 1 if x.dim() > 1 else 0)
    return dice.pick((lambda x: x.squeeze(dim), lambda x: x.squeeze(dim - x.dim())))


@operation(deep)
def repeat(dice: Dice, x: Tensor) -> Made:
    """Indices of a dimension, or the whole of it, several times."""
    dim, times = dice.dim(x, 1), dice.pick((2, 3))
    stretched = [-1] * (dim + 1) + [times] + [-1] * (x.dim() - dim - 1)
    each = torch.tensor([1, 2] * (x.shape[dim] // 2) + [1] * (x.shape[dim] % 2))
    counts = [times if i == dim else 1 for i in range(x.dim())]
    return dice.pick(
        (
            lambda x: x.repeat_interleave(times, dim=dim),
            lambda x: x.repeat(counts),
            lambda x: x.unsqueeze(dim + 1).expand(stretched).flatten(dim, dim + 1),
            lambda x: x.repeat_interleave(each, dim=dim),
        )
    )


@operation(deep)
def halves(dice: Dice, x: Tensor) -> Made:
    """A dimension is split in equal or unequal segments, each a value of its own."""
    dim = dice.dim(x, 1)
    size = x.shape[dim]
    first = dice.pick([n for n in (*SIZES, 1, 5) if n < size])
    return dice.pick(
        (
            lambda x: tuple(x.chunk(2, dim)),
            lambda x: x.split([first, size - first], dim),
            lambda x: (x.narrow(dim, 0, first), x.narrow(dim, first, size - first)),
            lambda x: tuple(x.split(first, dim)),
            lambda x: torch.tensor_split(x, [first], dim),
        )
    )


@operation(deep)
def segment(dice: Dice, x: Tensor) -> Made:
    """Some indices of a dimension: a stretch, every second, one, the last, or those of a table."""
    dim = dice.dim(x, 1)
    size, before = x.shape[dim], (slice(None),) * dim
    start, index = dice.pick(range(size)), torch.tensor([dice.pick(range(size)) for _ in range(dice.pick((4, 2, 6)))])
    chosen = [
        slice(0, start or None), slice(start, None), slice(None, -1), slice(0, None, 2), slice(1, None, 2), start,
        slice(-2, None), index, slice(start, start + 2),
    ]  # fmt: skip
    found = dice.pick(chosen)
    return dice.pick((lambda x: x[(*before, found)], lambda x: x.index_select(dim, index)))


@operation(deep, together)
def concatenate(dice: Dice, x: Tensor, y: Tensor) -> Made:
    """Two values, or three, one after another."""
    odd = [i for i, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)) if a != b]
    dim = odd[0] if odd else dice.dim(x, 1)
    return dice.pick(
        (
            lambda x, y: torch.cat((x, y), dim),
            lambda x, y: torch.cat((x, y, x), dim),
            lambda x, y: torch.cat((y, -y, x), dim),
        )
    )


@operation(deep, lambda x, y: x.shape == y.shape)
def stack(dice: Dice, x: Tensor, y: Tensor) -> Made:
    """Two values along a new dimension, perhaps interleaved."""
    dim = dice.dim(x, 1)
    if dice.yes():
        return lambda x, y: torch.stack((x, y), dim + 1).flatten(dim, dim + 1)
    return lambda x, y: torch.stack((x, y), dim)


@operation(lambda x: floating(x) and x.shape[-1] % 2 == 0)
def rotate(dice: Dice, x: Tensor) -> Made:
    """Halves or pairs of the last dimension, turned."""
    half = x.shape[-1] // 2
    return dice.pick(
        (
            lambda x: x.cos() * x + torch.cat((-x[..., half:], x[..., :half]), -1),
            lambda x: x + torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2),
            lambda x: torch.cat((x[..., :half] * 2, x[..., half:]), -1),
            lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * 1j).flatten(-2),
        )
    )


@operation(deep)
def pad(dice: Dice, x: Tensor) -> Made:
    """Zeros, another number, or less at the ends of a dimension."""
    dim = dice.dim(x, 1)
    where = [0, 0] * (x.dim() - 1 - dim)
    amounts = dice.pick(([2, 2], [0, 1], [1, 0], [-1, 1], [-1, -1], [0, 4]))
    value = dice.pick((0.0, 0.0, 1.5))
    return lambda x: F.pad(x, [*where, *amounts], value=value)


@operation(image)
def shuffle(dice: Dice, x: Tensor) -> Made:
    """Channels become pixels, pixels channels, or channels change places."""
    groups = dice.part(x.shape[1])
    return dice.pick(
        (
            lambda x: F.pixel_unshuffle(x, 2),
            lambda x: F.pixel_shuffle(x, 2),
            lambda x: x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2),
            lambda x: F.channel_shuffle(x, groups),
            lambda x: F.unfold(x, 2, stride=2),
        )
    )


@operation(image)
def pool(dice: Dice, x: Tensor) -> Made:
    """An image becomes smaller, or larger."""
    return dice.pick(
        (
            lambda x: F.max_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2), lambda x: F.adaptive_avg_pool2d(x, 1),
            lambda x: F.interpolate(x, scale_factor=2.0), lambda x: F.adaptive_max_pool2d(x, 2),
            lambda x: F.interpolate(x, size=(5, 5), mode="bilinear"), lambda x: F.max_pool2d(x, 3, 1, 1),
            lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), lambda x: F.lp_pool2d(x, 2.0, 2),
            lambda x: F.local_response_norm(x, 3),
        )
    )  # fmt: skip


@operation(line)
def pool_line(dice: Dice, x: Tensor) -> Made:
    """A line becomes shorter, or longer."""
    return dice.pick(
        (
            lambda x: F.avg_pool1d(x, 2), lambda x: F.max_pool1d(x, 2), lambda x: F.adaptive_avg_pool1d(x, 1),
            lambda x: F.interpolate(x, scale_factor=2.0), lambda x: F.pad(x, (1, 1), mode="replicate"),
            lambda x: F.pad(x, (2, 1), mode="circular"),
        )
    )  # fmt: skip


@operation(deep)
def assign(dice: Dice, x: Tensor) -> Made:
    """Some indices of a dimension are written over, in place or by index."""
    dim, index = dice.dim(x, 1), torch.tensor([0, 2])
    before = (slice(None),) * dim
    if x.shape[dim] < 3:
        return lambda x: x.scatter(dim, torch.zeros_like(x, dtype=torch.int64), x)

    def write(x: Tensor) -> Tensor:
        y = x.clone()
        y[(*before, slice(0, 2))] = 0.5
        return y

    return dice.pick(
        (
            write,
            lambda x: x.index_add(dim, index, x.narrow(dim, 0, 2)),
            lambda x: x.index_fill(dim, index, 0.25),
            lambda x: x.slice_scatter(x.narrow(dim, 0, 2) * 2, dim, 1, 3),
        )
    )
