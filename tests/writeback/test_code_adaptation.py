"""Tests of write-back into code that computes or compares sizes: attributes are set, and single arguments edited."""

import copy
import math
import pickle
from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune as gp
from tests.written import X, narrow


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class FromInput(nn.Module):
    """Attention that computes its head dim from the width of its input, and splits into parts of that width."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Any:
        b, t, c = x.size()
        q, k, v = self.qkv(x).split(self.width, dim=2)
        q, k, v = (y.view(b, t, self.heads, c // self.heads).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).contiguous().view(b, t, c))


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


class InMethods(FromInput):
    """Sizes in a list, in a method with a decorator and a default, by a receiver of another name or none."""

    @decorated
    def heads_of(layer, x: Tensor, like: Tensor, dim: int = -1) -> Any:  # noqa: N805
        sizes = [*like.shape[:2], layer.heads, like.shape[dim] // layer.heads]
        return x.reshape(sizes).transpose(1, 2)

    def forward(*arguments: Any) -> Any:
        layer, x = arguments
        q, k, v = (layer.heads_of(y, x) for y in layer.qkv(x).split(layer.width, dim=-1))
        y = ((q * (layer.width // layer.heads) ** -0.5) @ k.mT).softmax(-1) @ v
        return layer.out(y.transpose(1, 2).reshape(len(x), x.shape[1], x.shape[-1]))


@pytest.mark.parametrize("kind", [FromInput, InMethods])
def test_arguments_that_are_computed_from_other_tensors_are_edited(kind: Callable[[], FromInput]) -> None:
    module = kind()
    result = narrow(module)
    assert module.qkv.out_features < 96 and any(name.startswith(kind.__name__) for name in result.adapted)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert isinstance(other, kind) and torch.equal(other(X), module(X))  # type: ignore[arg-type]
    again = gp.trace(module, (X,))
    small = gp.apply(again, gp.plan(again, ratio=0.5))
    assert not small.write_back(module).padded and sum(p.numel() for p in module.parameters()) == small.count()


class Positions(nn.Module):
    """Attention with a table of positions, both divided by a root of the head dim, by operators that end with it."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = 4, 8
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.positions = nn.Parameter(torch.randn(4, X.shape[1], X.shape[1]))

    def forward(self, x: Tensor) -> Any:
        q, k, v = (f(x).view(*x.shape[:2], self.heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = q / math.sqrt(self.head_dim) @ k.mT
        scores += self.positions / math.sqrt(self.head_dim)
        y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], self.heads * self.head_dim))


def test_operators_that_end_with_a_call_are_edited() -> None:
    """Weights cannot take the factor of the positions."""
    module = Positions()
    program = gp.trace(module, (X,))
    small = gp.apply(program, gp.plan(program, ratio=0.5))
    result = small.write_back(module)
    assert not result.padded and result.adapted == ("Positions.forward",) and module.k.out_features < 32
    assert torch.allclose(module(X), small.module()(X), atol=1e-6)


class Checked(nn.Module):
    """Compares a width with that of its input, and uses it for nothing else."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels, self.conv = width, nn.Conv2d(width, width, 3, 2, 1)

    def forward(this, x: Tensor) -> Any:  # noqa: N805
        assert x.shape[1] == this.channels, "wrong number of channels"
        return this.conv(x)


def test_attributes_that_are_only_compared_follow() -> None:
    image = torch.randn(1, 3, 8, 8)
    module = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), Checked(16), nn.ReLU(), nn.Conv2d(16, 4, 1))
    assert not narrow(module, image).adapted and getattr(module[2], "channels") == 8  # noqa: B009
    normed = nn.Sequential(nn.Conv2d(3, 16, 1), Checked(16), nn.GroupNorm(4, 16), nn.Conv2d(16, 4, 1)).eval()
    program = gp.trace(normed, (image,))
    small = gp.apply(program, gp.plan(program, ratio=0.25, exact_only=False))
    assert not small.write_back(normed).padded and sum(p.numel() for p in normed.parameters()) == small.count()
    assert torch.allclose(normed(image), small.module()(image), atol=1e-5)
