"""Axes that are used twice, indexed, merged; parameters that are shared, sliced or seen in another shape."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

X, S, I = torch.randn(4, 6), torch.randn(2, 5, 6), torch.randn(4, 3, 8, 8)  # noqa: E741 - rows, sequences, images
AT = torch.tensor([0, 2, 1, 5])
IDS = torch.randint(0, 11, (2, 5))


@dataclass(frozen=True)
class Case:
    """A forward, its arguments, and what must be free; "?" where that depends on how many operators have rules."""

    name: str
    forward: Callable[..., Any]
    free: str
    args: tuple[Any, ...] = (X,)
    add: Callable[[Any], object] | None = None
    written: bool = True


def adds(**parts: Callable[[], Any]) -> Callable[[Any], None]:
    """Give a module further parts."""

    def add(module: Any) -> None:
        for name, make in parts.items():
            setattr(module, name, make())

    return add


def weight(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.randn(shape))


def pinned(s: Any, x: Tensor, index: Any) -> Tensor:
    """Something is taken from the channels, and the channels are contracted too."""
    y = s.a(x).relu()
    return s.c(y) + index(y)  # type: ignore[no-any-return]


INDEXED = [
    Case("a constant", lambda s, x: pinned(s, x, lambda y: y[:, 3:4]), "3 4", written=False),
    Case("one index", lambda s, x: pinned(s, x, lambda y: y[:, 3, None]), ""),
    Case("a tensor", lambda s, x: pinned(s, x, lambda y: y[:, torch.tensor([1, 2, 5])]), ""),
    Case("a slice", lambda s, x: pinned(s, x, lambda y: y[:, :3]), "5"),
    Case("a stride", lambda s, x: pinned(s, x, lambda y: y[:, ::4].sum(1, True)), "?", written=False),
    Case("data", lambda s, x, i: pinned(s, x, lambda y: y.gather(1, i[:, None])), "", (X, AT)),
    Case("pairs of data", lambda s, x, i: pinned(s, x, lambda y: y[torch.arange(4), i, None]), "", (X, AT)),
    Case("columns of data", lambda s, x, i: pinned(s, x, lambda y: y[:, i]), "", (X, AT[:3])),
    Case("the largest", lambda s, x: pinned(s, x, lambda y: y.argmax(1, keepdim=True)), "?"),
    Case("the three largest", lambda s, x: pinned(s, x, lambda y: y.topk(3, dim=1).values), "?"),
    Case("their order", lambda s, x: s.c(s.a(x).sort(1)[0]), ""),
    Case("a mask of values", lambda s, x: s.c(torch.where(s.a(x) > 0.1, s.a(x), 0.0)), "8"),
    Case("a mask of rows", lambda s, x: s.c(s.a(x)[s.b(x)[:, 0] > 0]), "?"),
    Case("rows that data tells", lambda s, x: s.c(s.a(x)[s.b(x)[:, 0].nonzero()[:, 0]]), "?"),
]

REUSED = [
    Case("an outer product", lambda s, x: s.c((s.a(x)[:, :, None] @ s.a(x)[:, None, :]).sum(1)), "8!"),
    Case("a flat outer product", lambda s, x: s.d(s.flat(x)), "4",
         add=adds(small=lambda: nn.Linear(6, 4), d=lambda: nn.Linear(16, 3), flat=lambda: Flat()), written=False),
    Case("a diagonal", lambda s, x: s.c(torch.diagonal(s.a(x)[:, :, None] * s.a(x)[:, None], dim1=1, dim2=2)), "?"),
    Case("a diagonal matrix", lambda s, x: s.c(torch.diag_embed(s.a(x)).sum(1)), "?"),
    Case("a Gram matrix", lambda s, x: (s.a(x).mT @ s.a(x), s.c(s.b(x))), "8", (S,)),
    Case("a Gram matrix of weights", lambda s, x: s.c(s.a(x) @ (s.b.weight @ s.b.weight.T)), "8 6"),
    Case("a symmetric weight", lambda s, x: s.c(s.a(x) @ (s.d.weight + s.d.weight.T)), "8",
         add=adds(d=lambda: nn.Linear(8, 8))),
    Case("a triangular weight", lambda s, x: s.c(s.a(x) @ s.d.weight.triu()), "", add=adds(d=lambda: nn.Linear(8, 8))),
    Case("a recurrence", lambda s, x: s.c(s.d(s.d(s.d(s.a(x)).tanh()).tanh())), "8",
         add=adds(d=lambda: nn.Linear(8, 8))),
    Case("an einsum", lambda s, x: s.c(torch.einsum("bi,bj,bj->bi", s.a(x), s.a(x), s.b(x))), "?"),
    Case("a sum over pairs", lambda s, x: s.c(torch.cdist(s.a(x)[:, None], s.b(x)[:, None])[:, 0] * s.a(x)), "?"),
]  # fmt: skip


def modulated(s: Any, x: Tensor) -> Tensor:
    """A convolution with a weight for every sample, by way of groups."""
    b, y, style = x.shape[0], s.first(x), s.style(x.mean((2, 3)))
    w = (s.w[None] * style[:, None, :, None, None]).reshape(b * 6, 8, 3, 3)
    return s.last(F.conv2d(y.reshape(1, b * 8, 8, 8), w, padding=1, groups=b).reshape(b, 6, 8, 8))  # type: ignore[no-any-return]


def every_channel(s: Any, x: Tensor) -> Tensor:
    """Every channel of every sample becomes an image of its own."""
    b, y = x.shape[0], s.first(x)
    return s.last(F.conv2d(y.view(b * 8, 1, 8, 8), s.k, padding=1).view(b, 8, 8, 8))  # type: ignore[no-any-return]


def soft_images(s: Any, x: Tensor) -> Tensor:
    y = s.first(x)
    b, c, h, w = y.shape
    return s.last(y.view(b * c, h * w).softmax(1).view(b, c, h, w))  # type: ignore[no-any-return]


IMAGES = adds(first=lambda: nn.Conv2d(3, 8, 1), last=lambda: nn.Conv2d(8, 2, 1), k=weight(1, 1, 3, 3))
MERGED = [
    Case("samples as groups", modulated, "", (I,), adds(
        first=lambda: nn.Conv2d(3, 8, 1), last=lambda: nn.Conv2d(6, 2, 1), w=weight(6, 8, 3, 3),
        style=lambda: nn.Linear(3, 8),
    )),
    Case("channels as samples", every_channel, "8", (I,), IMAGES, written=False),
    Case("channels as samples, by shape", soft_images, "8", (I,), IMAGES),
    Case("batch and channel mixed", lambda s, x: s.c(s.a(x).view(2, -1).view(4, 8)), "?", written=False),
    Case("channels split over rows", lambda s, x: s.c(s.a(x).view(8, 4).view(4, 8)), "?", written=False),
    Case("a transposed merge", lambda s, x: s.c(s.a(x).t().reshape(-1).view(8, 4).t()), "?", written=False),
]  # fmt: skip

SHARED = [
    Case("two layers", lambda s, x: s.c(F.linear(x, s.a.weight)) + s.c(F.linear(x, s.a.weight * 2)), "8"),
    Case("its transpose", lambda s, x: F.linear(s.a(x).relu(), s.a.weight.t()), "8"),
    Case("two halves", lambda s, x: s.c(F.linear(x, s.w[:8]) * F.linear(x, s.w[8:]).sigmoid()), "8",
         add=adds(w=weight(16, 6)), written=False),
    Case("joined", lambda s, x: s.d(F.linear(x, torch.cat((s.u, s.v))).relu()), "8 4",
         add=adds(u=weight(8, 6), v=weight(4, 6), d=lambda: nn.Linear(12, 3))),
    Case("all in one vector", lambda s, x: F.linear(F.linear(x, s.w[:48].view(8, 6)), s.w[48:].view(3, 8)), "8",
         add=adds(w=weight(72)), written=False),
    Case("a table as head", lambda s, i: F.linear(s.d(s.e(i)).relu(), s.e.weight), "8", (IDS,),
         adds(e=lambda: nn.Embedding(11, 8), d=lambda: nn.Linear(8, 8))),
    Case("two views of one memory", lambda s, x: s.c(s.a(x) * s.b(x)), "8", add=lambda s: overlap(s, 8)),
    Case("overlapping views of one memory", lambda s, x: s.c(s.a(x) * s.b(x)), "8", add=lambda s: overlap(s, 4)),
    Case("one layer three times", lambda s, x: s.c(s.every(s.a(x))), "8", add=adds(every=lambda: thrice())),
    Case("a layer under two names", lambda s, x: s.c(s.a(x).relu() + s.other(x).tanh()), "8",
         add=lambda s: setattr(s, "other", s.a)),
]  # fmt: skip

RESHAPED = [
    Case("a view", lambda s, x: s.c(F.linear(x, s.w.view(8, 6))), "2 4", add=adds(w=weight(2, 4, 6)), written=False),
    Case("a transpose", lambda s, x: (x @ s.w).relu() @ s.v, "8", add=adds(w=weight(6, 8), v=weight(8, 3))),
    Case("windows", lambda s, x: s.c(F.linear(x, s.d(s.w.unfold(1, 5, 1)).squeeze(-1))), "?",
         add=adds(w=weight(8, 10), d=lambda: nn.Linear(5, 1)), written=False),
    Case("a kernel as a matrix", lambda s, x: s.c((s.k.weight.view(8, -1) @ F.unfold(x, 3)).mT), "8", (I,),
         adds(k=lambda: nn.Conv2d(3, 8, 3)), written=False),
    Case("an expansion", lambda s, x: s.c(F.linear(x, s.w.expand(8, 6))), "8", add=adds(w=weight(8, 1)), written=False),
    Case("strides", lambda s, x: s.c(s.a(x).as_strided((4, 8), (8, 1))), "?"),
    Case("a low rank", lambda s, x: s.c((s.a(x) + x @ s.u.T @ s.v.T).relu()), "?",
         add=adds(u=weight(2, 6), v=weight(8, 2))),
    Case("not contiguous", lambda s, x: s.c(s.a(x).relu()), "8",
         add=lambda s: setattr(s.a, "weight", nn.Parameter(torch.randn(6, 8).t()))),
]  # fmt: skip


class Flat(nn.Module):
    """All products of two channels, in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return (y[:, :, None] * y[:, None, :]).flatten(1)  # type: ignore[no-any-return]


def overlap(s: Any, start: int) -> None:
    memory = torch.randn(start + 8, 6)
    s.a.weight, s.b.weight = nn.Parameter(memory[:8]), nn.Parameter(memory[start:])


def thrice() -> nn.Module:
    layer = nn.Linear(8, 8)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), layer)


@pytest.mark.parametrize(
    "case", [*INDEXED, *REUSED, *MERGED, *SHARED, *RESHAPED], ids=lambda case: case.name.replace(" ", "-")
)
def test_an_axis_in_an_unusual_place(case: Case, layers: Any, survives: Any) -> None:
    found = survives(layers(case.forward, case.add), *case.args)
    assert case.free in ("?", found.free), found
    assert not (case.written and found.wider)
