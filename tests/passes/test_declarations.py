"""A pass reads only facts that it declares, leaves those that it promises, and drops no others."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.frontends.modules import trace
from graphprune.ir import program as programs
from graphprune.ir.program import Program
from graphprune.pipeline import Pass, Timings
from graphprune.workflows.catalogue import RECIPES
from tests.recipes import pipeline_of

MORE = [
    "analyze | calibrate | score{by=obs} | measure-sensitivity{ratios=0.5} | allocate{by=sensitivity} | select | "
    "rewrite | refit | batch-norm-statistics | finetune{steps=1} | verify",
    "analyze | calibrate | score{by=fasp} | allocate{by=evolutionary} | select | rewrite | verify",
    "analyze | calibrate | allocate-ranks{by=error} | factorize",
]


class Blocks(nn.Module):
    """Residual blocks of attention heads and neurons under norms by root mean squares."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.RMSNorm(12), nn.RMSNorm(12)
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.up, self.down = nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        q, k, v = (layer(y).unflatten(2, (3, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(torch.relu(self.up(self.second(x))))  # type: ignore[no-any-return]


class Run(NamedTuple):
    """A run of a pass: the facts that it got, and those among them, or missing from them, that it looked for."""

    got: dict[type, Any]
    read: set[type]


class Recorder(dict[type, Any]):
    """Facts that note which of them the running pass reads, where it did not make them itself."""

    running: ClassVar[list[Run]] = []

    def __init__(self, facts: Any) -> None:
        super().__init__(facts)
        self.owner = self.running[-1] if self.running else None

    def _note(self, kind: Any) -> None:
        run = self.running[-1] if self.running else None
        if run is not None and self.owner is run and run.got.get(kind) is super().get(kind):
            run.read.add(kind)

    def __getitem__(self, kind: type) -> Any:
        self._note(kind)
        return super().__getitem__(kind)

    def get(self, kind: type, default: Any = None) -> Any:
        self._note(kind)
        return super().get(kind, default)

    def __contains__(self, kind: object) -> bool:
        self._note(kind)
        return super().__contains__(kind)


@pytest.fixture
def violations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Broken promises of the passes that run during a test."""
    broken, run = list[str](), Pass.__call__

    def recorded(self: Pass, program: Program) -> Program:
        Recorder.running.append(Run({**program.facts}, set()))
        before = {*program.facts} - {Timings}
        try:
            after = run(self, dataclasses.replace(program, facts=Recorder(program.facts)))
        finally:
            read = Recorder.running.pop().read
        broken.extend(f"{self} reads {fact.__name__}" for fact in read - {*self.needs, *self.reads, Timings})
        if {*after.facts} - {Timings} != before:  # a pass that changed nothing need not leave anything
            broken.extend(f"{self} does not leave {fact.__name__}" for fact in {*self.makes} - {*after.facts})
        lost = before - {*after.facts} - {*self.invalidates}
        broken.extend(f"{self} drops {fact.__name__}" for fact in lost)
        return after

    monkeypatch.setattr(programs, "MappingProxyType", Recorder)
    monkeypatch.setattr(Pass, "__call__", recorded)
    yield broken
    Recorder.running.clear()


def network() -> Program:
    torch.manual_seed(0)
    return trace(Blocks(), (torch.randn(2, 6, 5),))


def batches() -> Any:
    generator = torch.Generator().manual_seed(1)
    return tuple(((torch.randn(4, 6, 5, generator=generator),), {}) for _ in range(9))


def squares(output: Tensor, batch: int) -> Tensor:
    return output.square().mean()


@pytest.mark.parametrize("name", [*RECIPES, *MORE])
def test_a_pass_reads_what_it_declares_and_leaves_what_it_promises(name: str, violations: list[str]) -> None:
    own: dict[str, Any] = {"recipe": name} if name in RECIPES else {"pipeline": name}
    passes = pipeline_of(**own, sparsity=0.3, batches=batches(), loss=squares, trials=2)
    assert isinstance(passes(network()), gp.Program)
    assert violations == []
