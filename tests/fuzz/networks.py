"""Operators with parameters: linear maps, convolutions, norms, tables, attention, recurrences, shared layers."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz.arrangements import image, line
from tests.fuzz.layers import (
    Attention,
    Block,
    Bottleneck,
    Computed,
    Constant,
    Excite,
    FeedForward,
    Heads,
    Last,
    Norm,
    Scale,
    Table,
)
from tests.fuzz.numbers import deep
from tests.fuzz.world import Dice, Made, floating, operation

Convolution = type[nn.Conv1d] | type[nn.Conv2d]


def whole(x: Tensor) -> bool:
    """Are these indices?"""
    return x.dtype == torch.int64


@operation()
def linear(dice: Dice, x: Tensor) -> Made:
    """A linear map of the last dimension."""
    return dice.keep(nn.Linear(x.shape[-1], dice.size(), bias=not dice.yes()))


@operation(deep)
def linear_along(dice: Dice, x: Tensor) -> Made:
    """A linear map of another dimension."""
    dim = dice.dim(x, 1)
    layer = dice.keep(nn.Linear(x.shape[dim], dice.size()))
    return lambda x: layer(x.transpose(dim, -1)).transpose(dim, -1)


@operation()
def again(dice: Dice, x: Tensor) -> Made:
    """An earlier layer once more, as it is or transposed."""
    maps = (nn.Linear, nn.Embedding)
    found = [layer for layer in dice.maker.layers if isinstance(layer, maps) and x.shape[-1] in layer.weight.shape]
    if not found:
        return dice.pick(dice.maker.layers)
    layer = dice.pick(found)
    straight = layer.weight.shape[1] == x.shape[-1] and not (layer.weight.shape[0] == x.shape[-1] and dice.yes())
    return dice.pick(
        (
            lambda x: F.linear(x, layer.weight if straight else layer.weight.t()),
            lambda x: x @ (layer.weight.mT if straight else layer.weight),
        )
    )


@operation()
def computed(dice: Dice, x: Tensor) -> Made:
    """A linear map whose weight is a product, a concatenation, a normalised or a repeated parameter."""
    n, o, k = x.shape[-1], dice.size(), dice.size()
    made: list[tuple[tuple[int, ...], tuple[int, ...], Callable[[Tensor, Tensor], Tensor]]] = [
        ((o, k), (k, n), torch.matmul),
        ((o, n), (k, n), lambda a, b: torch.cat((a, b))),
        ((o, n), (o, 1), lambda a, b: F.normalize(a, dim=1) * b),
        ((o, n), (n,), lambda a, b: a * b),
        ((o, n), (o,), lambda a, b: a.softmax(0) + b[:, None]),
        ((o, n), (1,), lambda a, b: a.repeat(2, 1) * b),
        ((o, 1, n), (1, k, n), lambda a, b: (a * b).flatten(0, 1)),
        ((o, n), (n, o), lambda a, b: a + b.T),
        ((n, o), (n, o), lambda a, b: torch.stack((a, b)).permute(0, 2, 1).reshape(-1, a.shape[0])),
        ((o, n), (1,), lambda a, b: a[: max(1, a.shape[0] // 2)] - a.mean(0) * b),
    ]
    first, second, f = dice.pick(made)
    return dice.keep(Computed(first, second, f))


@operation()
def project(dice: Dice, x: Tensor) -> Made:
    """A product with a parameter, stored as (in, out) or (out, in)."""
    size, features = dice.size(), x.shape[-1]
    made = [
        ((features, size), lambda x, w: x @ w),
        ((features, size), lambda x, w: torch.einsum("...i,io->...o", x, w)),
        ((size, features), lambda x, w: F.linear(x, torch.tanh(w))),
        ((size, features), lambda x, w: torch.einsum("oi,...i->...o", w, x)),
        ((2, features, size), lambda x, w: x @ w[0] * torch.sigmoid(x @ w[1])),
        ((features,), lambda x, w: (x @ w)[..., None]),
    ]
    if x.dim() == 2:
        made.append(((features, size), lambda x, w: torch.addmm(w[0], x, w)))
    if x.dim() == 3:
        made.append(((x.shape[1], features, size), lambda x, w: torch.einsum("bgi,gio->bgo", x, w)))
        made.append(((size, x.shape[1]), lambda x, w: torch.einsum("bsc,ts->btc", x, w)))
    shape, f = dice.pick(made)
    return dice.keep(dice.pick((Scale, Scale, Constant))(shape, f))


@operation(lambda x: line(x) or image(x))
def convolution(dice: Dice, x: Tensor) -> Made:
    """A convolution: plain, pointwise, grouped, depthwise, strided, transposed."""
    kind: Convolution = nn.Conv1d if x.dim() == 3 else nn.Conv2d
    channels, out = x.shape[1], dice.size()
    groups = dice.pick((1, 1, *[n for n in range(2, channels + 1) if channels % n == 0 == out % n]))
    shapes: tuple[dict[str, Any], ...] = (
        {"kernel_size": 3, "padding": 1}, {"kernel_size": 1}, {"kernel_size": 2, "stride": 2},
                       {"kernel_size": 3, "padding": "same"}, {"kernel_size": 3, "dilation": 2, "padding": 2},
                       {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    )  # fmt: skip
    return dice.keep(kind(channels, out, groups=groups, bias=not dice.yes(), **dice.pick(shapes)))


@operation(lambda x: line(x) or image(x))
def depthwise(dice: Dice, x: Tensor) -> Made:
    """A convolution of every channel by itself, with one or two outputs each, perhaps transposed."""
    channels, times = x.shape[1], dice.pick((1, 2))
    if dice.yes():
        kind = nn.ConvTranspose1d if x.dim() == 3 else nn.ConvTranspose2d
        out, groups = dice.pick((times * channels, channels)), dice.pick((channels, 1))
        return dice.keep(kind(channels, out, 2, stride=2, groups=groups))
    plain: Convolution = nn.Conv1d if x.dim() == 3 else nn.Conv2d
    return dice.keep(plain(channels, times * channels, 3, padding=1, groups=channels))


@operation()
def norm(dice: Dice, x: Tensor) -> Made:
    """A norm of the last dimension."""
    features = x.shape[-1]
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.LayerNorm(features), lambda: nn.RMSNorm(features), lambda: Norm(features, True),
        lambda: Norm(features, False),
    ]  # fmt: skip
    if x.dim() > 2:
        kinds += [lambda: nn.LayerNorm(tuple(x.shape[-2:])), lambda: nn.LayerNorm(features, elementwise_affine=False)]
    return dice.keep(dice.pick(kinds)())


@operation(deep)
def channel_norm(dice: Dice, x: Tensor) -> Made:
    """A norm of the second dimension."""
    channels, rank = x.shape[1], x.dim()
    groups = dice.part(channels)
    kinds: list[Callable[[], nn.Module]] = [lambda: nn.GroupNorm(groups, channels), lambda: nn.PReLU(channels)]
    if rank in (2, 3):
        kinds.insert(0, lambda: nn.BatchNorm1d(channels))
    if rank == 4:
        kinds = [lambda: nn.BatchNorm2d(channels), lambda: nn.InstanceNorm2d(channels, affine=True), *kinds]
    if rank == 3:
        kinds.append(lambda: nn.InstanceNorm1d(channels, affine=True))
    return dice.keep(dice.pick(kinds)())


@operation(whole)
def chosen(dice: Dice, x: Tensor) -> Made:
    """Indices as vectors of zeros and a one, or as weights."""
    size = dice.pick((8, 6, 12, 4))
    return dice.pick(
        (
            lambda x: F.one_hot(x, size).double(),
            lambda x: (x[..., None] == torch.arange(size)).double(),
            lambda x: (x[..., None] + 1.0) * torch.ones(size, dtype=torch.float64) / 4,
        )
    )


@operation(whole)
def embedding(dice: Dice, x: Tensor) -> Made:
    """Rows of a table; the table may be as long as it is wide."""
    return dice.keep(nn.Embedding(dice.pick((8, 6, 12, 4)), dice.size()))


@operation()
def table(dice: Dice, x: Tensor) -> Made:
    """Rows of a table for the positions, or the same one for all."""
    length = x.shape[-2] if x.dim() > 1 else 1
    count = dice.pick((length, 12, 8))
    index = torch.tensor([dice.pick(range(count)) for _ in range(length)])
    return dice.keep(
        Table(count, x.shape[-1], index, dice.pick((
            lambda t, i: t[i], lambda t, i: F.embedding(i, t), lambda t, i: t.index_select(0, i),
            lambda t, i: t[: len(i)], lambda t, i: t.gather(0, i[:, None].expand(-1, t.shape[1])),
        )))
    )  # fmt: skip


@operation()
def feed_forward(dice: Dice, x: Tensor) -> Made:
    """A feed-forward layer, bare or on a residual path."""
    features, hidden = x.shape[-1], dice.size()
    gate = dice.pick(("none", "two", "fused"))
    if dice.yes():
        return dice.keep(FeedForward(features, hidden, dice.size(), gate))
    behind = nn.LayerNorm(features) if dice.yes() else nn.RMSNorm(features)
    return dice.keep(Block(behind, FeedForward(features, hidden, features, gate)))


@operation(lambda x: deep(x) and x.dim() == 3)
def attention(dice: Dice, x: Tensor) -> Made:
    """Self-attention, bare or on a residual path."""
    heads, size = dice.pick((4, 2, 6)), dice.pick((4, 2, 6, 8))
    order = dice.pick(("", "parts", "split", "heads"))
    groups = heads if order else dice.pick([n for n in range(1, heads + 1) if heads % n == 0])
    rotary = dice.pick(("", "halves", "pairs"))
    layout = Heads(heads, groups, size, order, rotary, not dice.yes(), dice.yes(), dice.yes())
    if dice.yes():
        return dice.keep(Attention(x.shape[-1], dice.size(), layout))
    return dice.keep(Block(nn.RMSNorm(x.shape[-1]), Attention(x.shape[-1], x.shape[-1], layout)))


@operation(lambda x: deep(x) and x.dim() == 3)
def multihead(dice: Dice, x: Tensor) -> Made:
    """The attention and the encoder layer that torch has."""
    features = x.shape[-1]
    heads = dice.pick([n for n in range(1, features + 1) if features % n == 0])
    if dice.yes():
        return dice.keep(
            nn.TransformerEncoderLayer(features, heads, dice.size(), batch_first=True, norm_first=dice.yes())
        )
    layer = dice.keep(nn.MultiheadAttention(features, heads, batch_first=True))
    return lambda x: layer(x, x, x, need_weights=False)[0]


@operation(lambda x: deep(x) and x.dim() == 3)
def recurrent(dice: Dice, x: Tensor) -> Made:
    """A recurrence over the second dimension."""
    kind = dice.pick((nn.GRU, nn.LSTM))
    layer: nn.Module = kind(x.shape[-1], dice.size(), batch_first=True, bidirectional=dice.yes())
    return dice.keep(Last(layer))


@operation(image)
def residual_image(dice: Dice, x: Tensor) -> Made:
    """A convolutional block."""
    hidden, out = dice.size(), dice.pick((x.shape[1], dice.size()))
    if dice.yes():
        return dice.keep(Excite(x.shape[1], hidden))
    return dice.keep(Bottleneck(x.shape[1], hidden, out, dice.pick((1, hidden, dice.part(hidden)))))


@operation(lambda x: floating(x) and x.dim() in (2, 3))
def bilinear(dice: Dice, x: Tensor) -> Made:
    """A bilinear map of a value and itself."""
    layer = dice.keep(nn.Bilinear(x.shape[-1], x.shape[-1], dice.size()))
    return lambda x: layer(x, x)


@operation(deep)
def experts(dice: Dice, x: Tensor) -> Made:
    """A mixture: every expert a row of one parameter, weighed by a router."""
    count, features, hidden = dice.pick((4, 2, 3)), x.shape[-1], dice.size()
    router = dice.keep(nn.Linear(features, count))
    up = dice.keep(Scale((count, features, hidden), lambda x, w: torch.einsum("...i,eih->...eh", x, w)))
    down = dice.keep(Scale((count, hidden, features), lambda h, w: torch.einsum("...eh,eho->...eo", h, w)))
    return lambda x: (down(F.relu(up(x))) * router(x).softmax(-1)[..., None]).sum(-2)
