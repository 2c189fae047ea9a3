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


def least_squares(net: Mixture, x: Tensor, neurons: slice = slice(None)) -> float:
    """The squared error of the best down projections of experts 1 and 2, which all tokens then take together."""
    with torch.no_grad():
        scores = net.router(x)[:, 1:]
        weights, chosen = scores.topk(2)
        gates = torch.zeros_like(scores).scatter(1, chosen, weights.softmax(1))
        rows = torch.cat([gates[:, e - 1, None] * torch.relu(x @ net.up[e])[:, neurons] for e in (1, 2)], 1)
        right = net(x)
        return float((rows @ torch.linalg.lstsq(rows, right).solution - right).square().sum())


def test_the_report_has_the_error_on_held_out_tokens(captured: Any) -> None:
    _, x, program = captured
    (refit,) = merged(program, x, "merge-experts").fact(Refits).by_weight.values()
    assert 0 < refit.error_after < refit.error_before


def test_removed_neurons_are_merged_as_well(captured: Any) -> None:
    """Retained neurons of retained experts are fitted to the whole mixture; a later refit leaves them so."""
    net, x, program = captured
    text = TEXT.replace("experts=0", "experts=0,up:2=0,1")
    calls: Any = tuple(((part,), {}) for part in x.chunk(8))
    more = "merge-experts{rounds=80,damping=1e-9}"
    small, later = (
        gp.Pipeline(parse(f"{text} | {steps} | verify", {"batches": calls}))(program)
        for steps in (more, f"{more} | refit{{statistics=mixed}}")
    )
    fitted, found = x.chunk(8)[:-1], small.module()
    with torch.no_grad():
        rest = torch.cat([found(part) - net(part) for part in fitted])
    assert float(rest.square().sum()) <= 1.05 * least_squares(net, torch.cat(fitted), slice(2, None))
    assert torch.equal(later.weights["down"], small.weights["down"])
    assert later.fact(Refits).by_weight.keys() == {"down"} and not later.fact(Refits).skipped
    assert small.weights["down"].shape[2] == net.down.shape[2] - 2


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(CalibrationError, match="at least one round and a positive damping, got 0"):
        MergeExperts(rounds=0).check()


def test_dependencies_name_the_rows_that_experts_add(captured: Any) -> None:
    (part,) = captured[2].fact(Dependencies).contributions
    assert part.node.startswith("mul") and part.axis.size == EXPERTS
