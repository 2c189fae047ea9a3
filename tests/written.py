"""Shared helpers of the write-back tests: modules that are cut, written back and compared."""

from typing import Any

import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.writeback.module import WrittenBack

X = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))


def written(module: nn.Module, *args: Any, protect: tuple[str, ...] = ()) -> tuple[gp.Program, WrittenBack]:
    """Cut half of every exact group, write the module back, and compare the two."""
    program = gp.trace(module.eval(), args or (X,))
    small = gp.apply(program, gp.plan(program, ratio=0.5, protect=protect))
    assert small.count() < program.count()
    result: WrittenBack = small.write_back(module)
    with torch.no_grad():
        expected, got = small.module()(*(args or (X,))), module(*(args or (X,)))
    assert (expected - got).abs().max() <= 1e-4 * expected.abs().max()
    assert sum(p.numel() for p in module.parameters()) == small.count() + result.unremoved
    assert bool(result.padded) == bool(result.unremoved)
    return small, result


def narrow(module: nn.Module, *args: Any) -> WrittenBack:
    """Cut and write back a module that must not need any padding."""
    _, result = written(module, *args)
    assert not result.padded, result
    return result


class Attention(nn.Module):
    """Four query heads and two key/value heads; subclasses define where sizes and the scale come from."""

    heads, groups, size = 4, 2, 8

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(32, self.heads * self.size), nn.Linear(32, self.groups * self.size)
        self.v, self.out = nn.Linear(32, self.groups * self.size), nn.Linear(self.heads * self.size, 32)
        nn.init.normal_(self.q.weight, 0, 0.5)
        nn.init.normal_(self.k.weight, 0, 0.5)  # scores so large that their scale shows
        self.head_dim = self.size
        self.scale = self.size**-0.5

    def split(self, x: Tensor) -> Any:
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

    def scores(self, q: Tensor, k: Tensor) -> Any:
        return q @ k.mT * self.scale

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        k, v = (y.repeat_interleave(q.shape[1] // y.shape[1], 1) for y in (k, v))
        y = (self.scores(q, k).softmax(-1) @ v).transpose(1, 2)
        return self.out(y.reshape(*x.shape[:2], -1))


class Normed(Attention):
    """Queries and keys are normalized over the head dim, which they share with values: only that of values is free."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(self.size)

    def scores(self, q: Tensor, k: Tensor) -> Any:
        return super().scores(self.norm(q), self.norm(k))
