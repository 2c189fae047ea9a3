"""Tests of what a module holds without registering it, and of what its parameters hold besides numbers."""

import copy
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import WriteBackError
from graphprune.writeback.module import WrittenBack
from tests.written import X


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Pair(NamedTuple):
    scale: Tensor
    shift: Tensor


class Holding(nn.Module):
    """A hidden layer that is multiplied by tensors which only plain Python objects hold."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 16), nn.Linear(16, 4)
        self.gain = torch.rand(16)
        self.same = [torch.rand(3), self.gain]
        self.nested = {"pair": Pair(torch.rand(16), torch.rand(16))}
        self.part = SimpleNamespace(tables=[torch.rand(16)])

    def forward(self, x: Tensor) -> Any:
        pair = self.nested["pair"]
        return self.down((self.up(x) * self.gain * pair.scale + pair.shift).relu() * self.part.tables[0])


class InClosure(nn.Module):
    """A tensor that only a closure holds, and a layer that is not registered."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, gain = nn.Linear(32, 16), nn.Linear(16, 4), torch.rand(16)
        self.scaled: Any = lambda x: x * gain
        self.hidden = [nn.Linear(4, 4)]

    def forward(self, x: Tensor) -> Any:
        return self.hidden[0](self.scaled(self.up(x).relu()) @ self.down.weight.T)


def cut(module: nn.Module, x: Tensor = X) -> tuple[gp.Plan, WrittenBack, Tensor]:
    """The plan, the result, and the outputs of the graph."""
    program = gp.trace(module.eval(), (x,))
    plan = gp.plan(program, ratio=0.5, protect=("down.weight:0",))
    small = gp.apply(program, plan)
    result: WrittenBack = small.write_back(module)
    with torch.no_grad():
        return plan, result, small.module()(x)


def test_tensors_that_are_not_registered_become_narrow() -> None:
    module: Any = Holding()
    before = copy.deepcopy(module)
    plan, result, expected = cut(module)
    kept = plan.keep["up.weight"][0]
    assert not result.padded and len(kept) == 8 and torch.allclose(module(X), expected, atol=1e-6)
    assert torch.equal(module.gain, before.gain[kept]) and module.same[1] is module.gain and len(module.same[0]) == 3
    for old, new in zip(before.nested["pair"], module.nested["pair"], strict=True):
        assert torch.equal(new, old[kept])
    assert type(module.nested["pair"]) is Pair and torch.equal(module.part.tables[0], before.part.tables[0][kept])
    masked = before
    masked.gain = torch.zeros(16).index_copy(0, kept, before.gain[kept])
    masked.nested["pair"] = Pair(before.nested["pair"].scale, torch.zeros(16))
    masked.nested["pair"].shift[kept] = module.nested["pair"].shift
    assert torch.allclose(module(X), masked(X), atol=1e-6)


def test_what_no_attribute_holds_is_padded() -> None:
    module: Any = InClosure()
    _, result, expected = cut(module)
    assert list(result.padded) == ["up.weight:0"] and module.up.out_features == 16
    assert torch.allclose(module(X), expected, atol=1e-6)


def test_a_cut_that_fails_leaves_plain_tensors_whole() -> None:
    module: Any = Holding()
    program = gp.trace(module.eval(), (X,))
    small = gp.apply(program, gp.plan(program, ratio=0.5, protect=("down.weight:0",)))
    held = module.gain, module.same, module.nested["pair"], module.part.tables[0]
    module.down.forward = lambda x: x @ torch.ones(16, 4)  # no longer what was traced
    with pytest.raises(WriteBackError, match="disagrees with the rewritten graph"):
        small.write_back(module)
    assert all(a is b for a, b in zip(held, (module.gain, module.same, module.nested["pair"]), strict=False))
    assert module.same[1] is module.gain and module.part.tables[0] is held[3]


class Marked(nn.Parameter):
    """A parameter of another class."""

    no_decay = False


def test_narrow_parameters_have_the_class_and_the_attributes_of_the_former() -> None:
    module: Any = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    weight: Any = Marked(module[0].weight.detach())
    module[0].weight, weight.no_decay, module[2].weight.group = weight, True, "head"
    module[0].bias.requires_grad_(False)
    program = gp.trace(module, (X,))
    gp.apply(program, gp.plan(program, ratio=0.5)).write_back(module)
    narrow: Any = module.get_parameter("0.weight")
    assert narrow.shape == (8, 32) and type(narrow) is Marked and narrow.no_decay
    assert module[2].weight.group == "head" and [p.requires_grad for p in module.parameters()] == [1, 0, 1, 1]
    module(X).sum().backward()
    assert narrow.grad is not None and narrow.grad.shape == (8, 32)
