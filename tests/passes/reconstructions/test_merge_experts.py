"""Retained experts take over what removed ones computed, by least squares on their own tokens."""

from typing import Any

import pytest
import torch
from torch import Tensor

import graphprune as gp
from graphprune.axes.groups import Dependencies
from graphprune.errors import CalibrationError
from graphprune.execution.output_comparison import Verification
from graphprune.ir.program import Program
from graphprune.passes.reconstructions.merge_experts import MergeExperts
from graphprune.pipeline import parse
from graphprune.planning.facts import Refits
from tests.declared_facts import broken_promises
from tests.passes.calibration.test_experts import EXPERTS, Mixture

TEXT = (
    "analyze{drop='router.weight:experts=0'} | calibrate | score{by=magnitude} | allocate{ratio=*=0} | select | rewrite"
)


@pytest.fixture(scope="module")
def captured() -> tuple[Mixture, Tensor, Program]:
    torch.manual_seed(0)
    net, x = Mixture(masked=False).double(), torch.randn(240, 6, dtype=torch.float64)
    return net, x, gp.trace(net, (x[:7],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


def merged(program: Program, x: Tensor, more: str) -> Program:
    calls: Any = tuple(((part,), {}) for part in x.chunk(8))
    return gp.Pipeline(parse(f"{TEXT} | {more} | verify", {"batches": calls}))(program)


def test_the_error_of_the_sum_falls_towards_the_least_squares_one(captured: Any) -> None:
    net, x, program = captured
    with broken_promises() as broken:
        small = merged(program, x, "merge-experts{rounds=40,damping=1e-9}")
    assert broken == [] and small.fact(Verification).max_error < 1e-9
    weight = small.weights["down"]
    assert weight.shape[0] == EXPERTS - 1
    fitted = x.chunk(8)[:-1]  # the last batch is held out
    found = small.module()
    with torch.no_grad():
        rest = torch.cat([found(part) - net(part) for part in fitted])
    best = least_squares(net, torch.cat(fitted))
    assert float(rest.square().sum()) <= 1.02 * best


def least_squares(net: Mixture, x: Tensor) -> float:
    """The squared error of the best down projections of experts 1 and 2, which all tokens then take together."""
    with torch.no_grad():
        scores = net.router(x)[:, 1:]
        weights, chosen = scores.topk(2)
        gates = torch.zeros_like(scores).scatter(1, chosen, weights.softmax(1))
        rows = torch.cat([gates[:, e - 1, None] * torch.relu(x @ net.up[e]) for e in (1, 2)], 1)
        right = net(x)
        return float((rows @ torch.linalg.lstsq(rows, right).solution - right).square().sum())


def test_the_report_has_the_error_on_held_out_tokens(captured: Any, caplog: pytest.LogCaptureFixture) -> None:
    _, x, program = captured
    (refit,) = merged(program, x, "merge-experts").fact(Refits).by_weight.values()
    assert 0 < refit.error_after < refit.error_before
    text = TEXT.replace("experts=0", "experts=0,up:2=0,1")
    calls: Any = tuple(((part,), {}) for part in x.chunk(8))
    small = gp.Pipeline(parse(f"{text} | merge-experts | verify", {"batches": calls}))(program)
    assert small.fact(Refits).skipped == {"down": "its other dimensions are cut, too"}
    assert "experts are not merged into down: its other dimensions are cut, too" in caplog.text


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(CalibrationError, match="at least one round and a positive damping, got 0"):
        MergeExperts(rounds=0).check()


def test_dependencies_name_the_rows_that_experts_add(captured: Any) -> None:
    (part,) = captured[2].fact(Dependencies).contributions
    assert part.node.startswith("mul") and part.axis.size == EXPERTS
