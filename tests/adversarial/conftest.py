"""The law that every hostile module is held to."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import WriteBackError
from graphprune.planning.index_scores import rows_of
from graphprune.planning.plan import make
from tests.streams import assert_streamed


@dataclass(frozen=True)
class Survived:
    """What a module went through: its groups ("8 4!": one of 8, one of 4 that is not exact), the operators without a
    rule, and what kept the module wider than the graph ("" if nothing did)."""

    free: str
    opaque: str
    wider: str


class Layers(nn.Module):
    """Three maps, whatever `add` adds, and a forward of the test's."""

    def __init__(self, forward: Callable[..., Any], add: Callable[[Any], object] | None = None) -> None:
        super().__init__()
        self.does, self.a, self.b, self.c = forward, nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        if add:
            add(self)
        for parameter in self.parameters():
            if parameter.is_floating_point() and not parameter.is_meta:
                nn.init.normal_(parameter)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.does(self, *args, **kwargs)


def survive(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Survived:
    """Trace, analyse, cut by half and at random, compare with the masked original, and write back."""
    program = gp.trace(module, args, kwargs)
    assert_streamed(program)
    found = gp.analyze(program)
    program = program.with_facts(found)
    exact = [group for group in found.groups if group.exact]
    for seed in range(3 if exact else 0):
        random = Random(seed)
        rows = {
            group.name: tuple(
                tuple(sorted(random.sample(range(group.size), -(-group.size // (seed + 2)))))
                for _ in range(rows_of(group, found))
            )
            for group in exact
        }
        plan = make(program, found, rows)
        gp.verify(program, gp.apply(program, plan), plan)
    free = " ".join(f"{g.size}{'' if g.exact else '!'}" for g in found.groups)
    opaque = ", ".join(sorted(found.opaque))
    return Survived(free, opaque, _written(program, module) if exact else "")


def _written(program: gp.Program, module: nn.Module) -> str:
    """Cut by half and write back; modes and flags must stay, and shapes follow. Returns what stayed wider, and why."""
    plan = gp.plan(program, ratio=0.5, recipe="magnitude", exact_only=True)
    small = gp.apply(program, plan)
    gp.verify(program, small, plan)
    before = {name: (p.requires_grad, p.dtype) for name, p in module.named_parameters()}
    modes, sizes = [part.training for part in module.modules()], _shapes(module)
    try:
        report = small.write_back(module)
    except WriteBackError as fault:
        assert _shapes(module) == sizes, "a refused module must stay as it was"
        return str(fault)
    shapes = small.shapes()
    assert {name: (p.requires_grad, p.dtype) for name, p in module.named_parameters()} == before
    assert [part.training for part in module.modules()] == modes
    as_narrow = all(shape == shapes[name] for name, shape in _shapes(module).items() if name in shapes)
    assert as_narrow == (not report.padded) and small.count() < program.count()
    return "" if as_narrow else str(report)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


@pytest.fixture
def layers() -> type[Layers]:
    """Three maps and a forward of the test's."""
    torch.manual_seed(0)
    return Layers


@pytest.fixture
def survives() -> Callable[..., Survived]:
    """Hold a module to the law, called with the given arguments."""
    torch.manual_seed(0)

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Survived:
        return survive(module, args, kwargs)

    return call


@pytest.fixture
def x() -> Tensor:
    """Four rows of six features."""
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
