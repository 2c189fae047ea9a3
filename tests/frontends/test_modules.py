"""Modules are captured as they are called, and are afterwards as they were before."""

from typing import Any

import torch
from torch import Tensor, nn

import graphprune as gp


class Swallows(nn.Module):
    """Takes what it does not name as further keywords, as many language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, scale: float = 1.0, **others: Any) -> Tensor:
        y: Tensor = self.last(torch.relu(self.first(x)))
        shift: Tensor | float = others.get("shift", 0.0)
        return y * scale + shift


def test_keywords_that_a_signature_does_not_name_have_dynamic_sizes_too() -> None:
    module = Swallows()
    program = gp.trace(module, kwargs={"x": torch.randn(4, 6), "shift": torch.randn(4, 3)})
    assert "forward" not in vars(module)
    plan = gp.plan(program, ratio=0.5)
    small = gp.apply(program, plan)
    assert gp.verify(program, small, plan).cases == 2
    assert small.module()(x=torch.randn(7, 6), shift=torch.randn(7, 3)).shape == (7, 3)


def test_a_forward_of_the_instance_stays() -> None:
    module = Swallows()
    plain = module.forward

    def doubled(x: Tensor, **others: Any) -> Tensor:
        return plain(x, scale=2.0, **others)

    module.forward = doubled  # type: ignore[assignment, method-assign]
    gp.trace(module, kwargs={"x": torch.randn(4, 6), "shift": torch.randn(4, 3)})
    assert module.forward is doubled


class Remembers(nn.Module):
    """Keeps what it computed once, in a table and in a list, as some do in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.randn(2, 8))
        self.known: dict[str, Tensor] = {}
        self.calls: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(x)
        if "bias" not in self.known:
            self.known["bias"] = self.bias.sum(0)
        y: Tensor = self.last(torch.relu(self.first(x) * self.known["bias"]))
        return y


def test_what_a_module_remembers_is_not_that_of_the_capture() -> None:
    module = Remembers()
    program = gp.trace(module, (torch.randn(4, 6),))
    assert not module.known and not module.calls
    small = gp.apply(program, gp.plan(program, ratio=0.5))
    small.write_back(module)
    assert not module.known and module(torch.randn(2, 6)).shape == (2, 3)


class Listens(Remembers):
    """Hangs a hook into a part of itself when it runs first, as some do to hand out what is computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[int] = []
        self.listening = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.listening:
            self.listening = True
            self.first.register_forward_hook(lambda *_: self.heard.append(1))
        self.heard.clear()
        return super().forward(x) * len(self.heard)


def test_hooks_that_a_run_sets_are_taken_back() -> None:
    module = Listens()
    program = gp.trace(module, (torch.randn(4, 6),))
    assert not module.first._forward_hooks and not module.listening
    gp.apply(program, gp.plan(program, ratio=0.5)).write_back(module)
    assert not module.first._forward_hooks and not module.listening
