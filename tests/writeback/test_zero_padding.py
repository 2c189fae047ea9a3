"""Tests of write-back where sizes alone do not suffice: factors in weights, zero padding, or a restored module."""

from collections.abc import Callable
from math import sqrt
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import WriteBackError
from graphprune.ir.weights import Layered
from graphprune.planning.facts import Refits
from graphprune.planning.plan import make
from graphprune.writeback.attribute_slots import slots
from tests.written import Attention, Normed, X, narrow, written


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_a_group_that_shares_its_size_with_a_wider_one_is_padded() -> None:
    module = nn.Sequential(Normed(), nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32))
    small, result = written(module)
    assert list(result.padded) == ["*.v.weight:0.1"]
    assert "one size, Normed.head_dim, for it and for an axis of width 8" in result.padded["*.v.weight:0.1"]
    attention: Any = module[0]
    touched = (attention.v.weight, attention.v.bias, attention.out.weight)
    assert result.unremoved == sum(tensor.numel() // 2 for tensor in touched)
    assert (attention.v.weight == 0).all(1).sum() == attention.v.out_features // 2
    assert module[1].out_features == 24
    assert "padded with zeros in the module: *.v.weight:0.1 - its forward uses one size" in str(result)
    assert f"{result.unremoved:,} parameters" in str(result)
    assert small.count() < sum(p.numel() for p in module.parameters())


def test_two_widths_under_one_size_meet_at_the_wider_one() -> None:
    module = Attention().eval()
    program = gp.trace(module, (X,))
    dependencies = gp.analyze(program)
    names = {g.places[0].parameter: g.name for g in dependencies.groups if g.size == 8}
    score, value = (next(n for n in names.values() if n.startswith(p)) for p in ("q", "v"))
    rows = {score: ((0, 1, 2, 3, 4, 6),), value: ((1, 2, 3),)}
    small = gp.apply(program, make(program, dependencies, rows))
    result = small.write_back(module)
    assert list(result.padded) == [value] and module.head_dim == 6
    assert module.v.weight.shape == (12, 32)
    with torch.no_grad():
        assert torch.allclose(module(X), small.module()(X), atol=1e-5)


class RunTime(Attention):
    """The scale is recomputed from the attribute that the views use."""

    def scores(self, q: Tensor, k: Tensor) -> Any:
        return q @ k.mT / sqrt(self.head_dim)


class FromShape(Attention):
    """The scale is recomputed from a shape."""

    def scores(self, q: Tensor, k: Tensor) -> Any:
        return q @ k.mT * q.shape[-1] ** -0.5


class Default(Attention):
    """The scale is left to fused attention."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        k, v = (y.repeat_interleave(q.shape[1] // y.shape[1], 1) for y in (k, v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class OneAxis(RunTime):
    """Queries, keys and values are slices of one view, so that they share their inner axis."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.heads
        self.qkv = nn.Linear(32, (self.heads + 2) * self.size)
        nn.init.normal_(self.qkv.weight, 0, 0.5)
        del self.q, self.k, self.v

    def forward(self, x: Tensor) -> Any:
        parts = self.qkv(x).unflatten(2, (self.count + 2, self.head_dim)).transpose(1, 2)
        q, k, v = parts[:, :-2], parts[:, -2:-1], parts[:, -1:]
        return self.out((self.scores(q, k).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Turned(OneAxis):
    """Both halves of queries and keys are turned by the same angles, so that their axis is a product."""

    def __init__(self) -> None:
        super().__init__()
        self.angles = nn.Parameter(torch.randn(X.shape[1], self.size // 2))

    def turned(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        cos, sin = self.angles.cos(), self.angles.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def scores(self, q: Tensor, k: Tensor) -> Any:
        return super().scores(self.turned(q), self.turned(k))


class Placed(OneAxis):
    """Queries meet rows of a table, too, and those scores have no scale."""

    def __init__(self) -> None:
        super().__init__()
        at = torch.arange(X.shape[1])
        self.places = nn.Parameter(torch.randn(2 * len(at) - 1, self.size))
        self.distances = at[:, None] - at + len(at) - 1

    def scores(self, q: Tensor, k: Tensor) -> Any:
        return super().scores(q, k) + torch.einsum("bhqd,qkd->bhqk", q, self.places[self.distances])


class Spread(OneAxis):
    """Queries are multiplied by rows that are looked up in a table."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(X.shape[1], self.size)

    def scores(self, q: Tensor, k: Tensor) -> Any:
        return super().scores(q * self.places(torch.arange(q.shape[2])), k)


@pytest.mark.parametrize("kind", [RunTime, FromShape, Default, OneAxis, Turned, Placed, Spread])
def test_weights_take_the_factor_of_a_scale_that_follows_a_size(kind: Callable[[], nn.Module]) -> None:
    result = narrow(kind())
    one = issubclass(kind, OneAxis)  # type: ignore[arg-type]
    assert set(result.multiplied) >= ({"qkv.weight", "qkv.bias"} if one else {"q.weight", "k.bias"})


class Counting(Attention):
    """The size is used as a number, which no factor in a weight can compensate."""

    def scores(self, q: Tensor, k: Tensor) -> Any:
        return super().scores(q, k) + (q @ k.mT - sqrt(self.head_dim)).abs() * self.scale


def test_a_size_that_is_used_as_a_number_is_adapted() -> None:
    _, result = written(Counting())
    assert not result.padded and result.adapted == ("Counting.scores",)


class Recomputed(nn.Module):
    """A function outside of the layer reshapes to the size of its input, so that this width is fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.wide, self.narrow = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Any:
        y = _like(self.up(x).tanh() * self.gate(x), x)
        return self.down(y) + self.narrow(self.wide(x).relu())


def _like(y: Tensor, x: Tensor) -> Tensor:
    return y.reshape(x.shape)


def test_only_groups_that_need_it_are_padded() -> None:
    module = Recomputed()
    _, result = written(module)
    assert list(result.padded) == ["up.weight:0"] and "is invalid for input of size" in result.padded["up.weight:0"]
    assert module.wide.out_features == module.narrow.in_features == 32
    assert module.up.out_features == 32 and (module.up.weight == 0).all(1).sum() == 16


class Multihead(nn.Module):
    """nn.MultiheadAttention checks that its width is that of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.up, self.down = nn.MultiheadAttention(32, 4), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Any:
        return self.down(self.up(self.attention(x, x, x)[0]).relu())


def test_multihead_attention_is_padded() -> None:
    module = Multihead()
    _, result = written(module)
    assert all(kind.startswith("attention.") for kind in result.padded) and module.up.out_features == 32


def test_refitted_weights_are_padded_as_they_are() -> None:
    module = nn.Sequential(Normed(), nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32)).eval()
    program = gp.trace(module, (X,))
    small = gp.apply(program, gp.plan(program, ratio=0.5))
    new = {"0.out.weight": torch.randn_like(small.weights["0.out.weight"])}
    refitted = small.with_facts(Refits({}, {}, small.weights), weights=Layered((new, small.weights)))
    result = refitted.write_back(module)
    assert result.padded
    with torch.no_grad():
        assert torch.allclose(module(X), refitted.module()(X), atol=1e-5)
    assert new["0.out.weight"].flatten()[0] in module.get_parameter("0.out.weight")


def state(module: nn.Module) -> list[Any]:
    """Everything that a failure must restore: identities of tensors, their numbers, and all attributes."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    return [
        [(name, id(tensor), tensor.detach().clone().flatten().tolist()) for name, tensor in tensors],
        [{k: v for k, v in vars(part).items() if not isinstance(v, dict)} for part in module.modules()],
        [(id(slot.owner), slot.key, slot.index, slot.value) for slot in slots(module)],
    ]


class Moody(Attention):
    """Every call returns another result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.config = 0, SimpleNamespace(sizes=(8, 4))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return super().forward(x) + self.calls


class Picky(Attention):
    """Raises an unusual error as soon as its weights change."""

    def forward(self, x: Tensor) -> Any:
        if self.q.weight.sum() != self.total:
            raise LookupError("not my weights")
        return super().forward(x)


@pytest.mark.parametrize(("kind", "match"), [(Moody, "they differ by"), (Picky, "not my weights")])
def test_a_module_that_cannot_follow_is_restored(kind: Callable[[], nn.Module], match: str) -> None:
    module: Any = kind().eval()
    program = gp.trace(Attention().eval(), (X,)) if kind is Picky else gp.trace(module, (X,))
    module.total = module.q.weight.sum().item()
    small = gp.apply(program, gp.plan(program, ratio=0.5))
    if kind is Moody:
        module.calls = 100
    before = state(module)
    with pytest.raises(WriteBackError, match=rf"even with zeros at all removed indices \(.*{match}.*program.module"):
        small.write_back(module)
    assert state(module) == before
