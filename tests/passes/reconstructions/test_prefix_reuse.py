"""Where a pruned segment goes on from values of the original, and where it may not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.axes.groups import Dependencies
from graphprune.execution.segments import Segment, run, split
from graphprune.ir.program import Program, Rewritten
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.reconstructions import sequential_refit
from graphprune.passes.reconstructions.prefix_reuse import reusable
from graphprune.passes.reconstructions.refit import Refit
from graphprune.planning.plan import primes_to_keep
from graphprune.statistics.collector import Calibration
from graphprune.statistics.stream import Stream


class Block(nn.Module):
    """A gated map, or attention, beside a stream."""

    def __init__(self, attends: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 6)
        self.attends = attends

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = self.a(x), self.b(x)
        mixed = torch.softmax(a @ b.mT, -1) @ b if self.attends else a.sigmoid() * b
        return x + self.c(mixed)  # type: ignore[no-any-return]


def cut(attends: bool, ratio: float = 0.5) -> Program:
    torch.manual_seed(0)
    calls: list[Any] = [((torch.randn(4, 5, 6),), {}) for _ in range(8)]
    program = gp.trace(Block(attends), (torch.randn(2, 5, 6),))
    pipeline = gp.Pipeline.parse(f"analyze,score{{by=magnitude}},allocate{{by=uniform,ratio={ratio}}},select,rewrite")
    return gp.Pipeline((*pipeline.passes[:1], Calibrate(batches=tuple(calls), moments="full"), *pipeline.passes[1:]))(
        program
    )


def segments(program: Program) -> list[Segment]:
    original = program.fact(Rewritten).original
    return split(original, {c.node for c in original.fact(Dependencies).consumers})


def test_what_is_reused_is_what_the_pruned_segment_makes() -> None:
    program = cut(attends=False)
    original = program.fact(Rewritten).original
    keep = primes_to_keep(original.fact(Dependencies), program.fact(Rewritten).groups)
    consumers = [c for c in original.fact(Dependencies).consumers if c.weight == "c.weight"]
    found = 0
    for segment in segments(program):
        here = [c for c in consumers if c.node in segment.names]
        reuse = reusable(program, segment, here, keep) if here else None
        if reuse is None:
            continue
        assert {n.name for n in reuse.early.nodes} | {n.name for n in reuse.rest.nodes} <= segment.names
        stream = Stream.start(original, program.fact(Calibration))
        entry = torch.randn(4, 5, 6)
        known = stream.load(segment, original.weights)
        _, seen = run(reuse.early, original, known, {}, entry, reuse.retained)
        small = Stream.start(program, program.fact(Calibration)).load(segment, program.weights)
        whole = sequential_refit.counterpart(segment, program)
        _, made = run(whole, program, small, {}, entry, reuse.retained)
        for name in reuse.retained:
            torch.testing.assert_close(reuse.narrowed(name, seen[name]), made[name])
            found += 1
    assert found


@pytest.mark.parametrize("attends", [False, True])
@pytest.mark.parametrize("refit", [Refit(damping=0.01), Refit(damping=0.01, statistics="mixed", residual=True)])
def test_the_refit_is_the_same_as_without(refit: Refit, attends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    program = cut(attends)
    short = refit(program)
    monkeypatch.setattr(sequential_refit, "reusable", lambda *_: None)
    whole = refit(program)
    torch.testing.assert_close(short.weights["c.weight"], whole.weights["c.weight"], rtol=1e-4, atol=1e-5)


def test_what_a_cut_changes_is_computed_anew() -> None:
    """Products of queries and keys lose terms where these are narrower, so what follows is not a part of what was."""
    program = cut(attends=True)
    original = program.fact(Rewritten).original
    keep = primes_to_keep(original.fact(Dependencies), program.fact(Rewritten).groups)
    consumers = [c for c in original.fact(Dependencies).consumers if c.weight == "c.weight"]
    last = next(s for s in segments(program) if consumers[0].node in s.names)
    assert reusable(program, last, consumers, keep) is None
