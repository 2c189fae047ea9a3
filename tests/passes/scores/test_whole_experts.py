"""Scores of whole experts against direct computations over the rows that are routed to each."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import graphprune as gp
from graphprune.axes.groups import Dependencies
from graphprune.evaluation.masked_loss import Objective
from graphprune.execution.output_comparison import Verification
from graphprune.ir.program import Program
from graphprune.passes.scores.growth import MERGED
from graphprune.pipeline import parse
from graphprune.planning.facts import Eligible, Scores
from graphprune.planning.plan import Plan, make
from graphprune.solvers.normal_equations import CAUTIOUS_DAMPINGS, add_damping
from graphprune.statistics.moments import GradientSums
from graphprune.workflows.recipes.catalogue import RECIPES
from tests.declared_facts import broken_promises
from tests.passes.calibration.test_experts import EXPERTS, IDLE, Mixture

BATCHES = 3
TEXT = RECIPES["reap"].text


@pytest.fixture(scope="module")
def captured() -> tuple[Mixture, Tensor, Program]:
    torch.manual_seed(0)
    net, x = Mixture(masked=False).double(), torch.randn(60, 6, dtype=torch.float64)
    return net, x, gp.trace(net, (x[:7],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


def run(program: Program, x: Tensor, text: str, **more: Any) -> Program:
    calls: Any = tuple(((part,), {}) for part in x.chunk(BATCHES))
    options = {"batches": calls, "exact_only": False, "damping": 0.01, **more}
    return gp.Pipeline(parse(text, options))(program)


def energy(output: Tensor, batch: int) -> Tensor:
    return output.square().mean()


def added(net: Mixture, x: Tensor) -> list[Tensor]:
    """The rows that each expert adds to the result, by a loop over experts."""
    weights, chosen = net.router(x).topk(2)
    weights = weights.softmax(1)
    rows = list[Tensor]()
    for e in range(EXPERTS):
        gate = (weights * (chosen == e)).sum(1)
        routed = (chosen == e).any(1)
        rows.append((gate[routed, None] * (torch.relu(x[routed] @ net.up[e]) @ net.down[e].T)).detach())
    return rows


EXPECTED: dict[str, Callable[[list[Tensor]], list[float]]] = {
    "reap": lambda rows: [float(part.norm(dim=1).sum()) / max(len(part), 1) for part in rows],
    "routing-frequency": lambda rows: [len(part) for part in rows],
}


@pytest.mark.parametrize("score", EXPECTED)
def test_experts_are_scored_by_their_tokens(captured: Any, score: str, caplog: pytest.LogCaptureFixture) -> None:
    net, x, program = captured
    result = run(program, x, f"analyze | calibrate | measure-routing | score{{by={score}}}")
    (scores,) = result.fact(Scores).by_group.values()
    expected = torch.tensor([EXPECTED[score](added(net, x))], dtype=torch.float64)
    torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-9)
    assert f"no calibration token reaches 1 of the {EXPERTS} experts" in caplog.text and f": {IDLE}" in caplog.text


def test_growth_is_that_of_a_factor_on_the_output(captured: Any) -> None:
    net, x, program = captured
    result = run(program, x, "analyze | calibrate | gradients | score{by=expert-growth}", loss=energy)
    (scores,) = result.fact(Scores).by_group.values()
    expected = torch.zeros(EXPERTS, dtype=torch.float64)
    for part in x.chunk(BATCHES):
        weights, chosen = net.router(part).topk(2)
        factor = torch.ones(chosen.shape, dtype=torch.float64, requires_grad=True)  # one for each routed row
        outputs = torch.stack([torch.relu(part @ net.up[e]) @ net.down[e].T for e in range(EXPERTS)], 1)
        rows = outputs.gather(1, chosen[:, :, None].expand(-1, -1, 5))
        total = (rows * (weights.softmax(1) * factor)[:, :, None]).sum(1)
        (slopes,) = torch.autograd.grad(total.square().mean(), factor)
        expected.index_add_(0, chosen.flatten(), slopes.square().flatten() / 2)
    torch.testing.assert_close(scores[0], expected, rtol=1e-9, atol=1e-12)


def test_growth_rates_experts_and_neurons_in_one_unit(captured: Any) -> None:
    _, x, program = captured
    text = "analyze{experts=true} | calibrate | gradients | score{by=%s}"
    both, experts, neurons = (
        run(program, x, text % score, loss=energy, exact_only=True).fact(Scores).by_group
        for score in ("growth", "expert-growth", "k-obs")
    )
    assert both.keys() == experts.keys() | neurons.keys() and len(experts) == len(neurons) == 1
    for name, scores in experts.items():
        torch.testing.assert_close(both[name], MERGED * scores, rtol=1e-12, atol=0)
    for name, scores in neurons.items():
        torch.testing.assert_close(both[name], scores, rtol=1e-12, atol=0)


def test_whole_experts_are_eligible_where_inexact_groups_are_not(captured: Any) -> None:
    _, _, program = captured
    exact, whole = (gp.Analyze(experts=each)(program).fact(Eligible).groups for each in (False, True))
    assert not any(group.routed for group in exact)
    assert [group.label for group in whole if group not in exact] == ["experts"]
    assert all(group.exact or group.routed for group in whole)


def test_a_cut_of_experts_is_proved(captured: Any) -> None:
    """Against a router whose scores of removed experts are minus infinity; zeros would be good scores."""
    _, x, program = captured
    with broken_promises() as broken:
        result = run(program, x, TEXT, ratio=0.25)
    assert broken == []
    (kept,) = result.fact(Plan).groups.values()
    assert len(kept[0]) == EXPERTS - 1 and IDLE not in kept[0]
    assert result.fact(Verification).max_error < 1e-9


def test_a_wrong_cut_of_experts_is_refused(captured: Any) -> None:
    _, _, program = captured
    (group,) = (g for g in program.fact(Dependencies).groups if g.routed)
    plans = [make(program, program.fact(Dependencies), {group.name: (rows,)}) for rows in ((0, 1, 3), (0, 2, 3))]
    with pytest.raises(gp.errors.VerificationError, match="differ"):
        gp.verify(program, gp.apply(program, plans[0]), plans[1])


def test_neurons_of_experts_are_ordered_by_the_growth_of_the_loss(captured: Any) -> None:
    """The first neuron that an expert loses costs least by the Gram matrices of its own rows, which count by the energy
    of their gradients, and of the gradients."""
    net, x, program = captured
    text = "analyze | calibrate | gradients{of=outputs} | score{by=k-obs} | allocate | select | rewrite"
    result = run(program, x, f"{text} | refit | verify", loss=energy, ratio=0.5, exact_only=True)
    (scores,) = result.fact(Scores).by_group.values()
    slopes = add_damping(result.fact(GradientSums).output_grams["grouped_mm_fallback_1"], CAUTIOUS_DAMPINGS[1])
    hidden, gradients = list[Tensor](), list[Tensor]()
    for part in x.chunk(BATCHES):
        weights, chosen = net.router(part).topk(2)
        inside = torch.stack([torch.relu(part @ net.up[e]) for e in range(EXPERTS)], 1).detach()
        outputs = torch.stack([inside[:, e] @ net.down[e].T for e in range(EXPERTS)], 1).detach().requires_grad_()
        rows = outputs.gather(1, chosen[:, :, None].expand(-1, -1, 5))
        total = (rows * weights.softmax(1)[:, :, None]).sum(1)
        gradients.append(torch.autograd.grad(total.square().mean(), outputs)[0])
        hidden.append(inside)
    roots = torch.cat(gradients).norm(dim=2)  # zero for tokens that are routed elsewhere
    routed = torch.cat(hidden) * (roots / (roots.square().sum() / (2 * len(x))).sqrt())[:, :, None]
    for e in range(IDLE):
        inverse = torch.linalg.inv(add_damping(routed[:, e].T @ routed[:, e], CAUTIOUS_DAMPINGS[0]))
        weight = net.down[e].detach()
        costs = ((slopes @ weight) * weight).sum(0) / inverse.diagonal()
        assert scores[e].argmin() == costs.argmin()
        gram = result.fact(GradientSums).input_moments[f"grouped_mm_fallback_1[{e}]"].gram
        torch.testing.assert_close(gram, routed[:, e].T @ routed[:, e], rtol=1e-9, atol=1e-12)
    assert len(set(result.fact(Plan).groups["up:2"])) > 1 and result.fact(Verification).max_error < 1e-9


def test_the_loss_of_a_plan_is_that_of_its_cut(captured: Any) -> None:
    """Plans that remove experts are tried with a router that refuses them."""
    _, x, program = captured
    calibrated = run(program, x, "analyze | calibrate{moments=none}")
    (group,) = (g for g in program.fact(Dependencies).groups if g.routed)
    rows = {group.name: ((1, 2, 3),)}
    objective = Objective.of(calibrated)
    small = gp.apply(program, make(program, program.fact(Dependencies), rows))
    assert objective.loss(rows) == pytest.approx(objective.loss_of(small), rel=1e-9)
    assert objective.loss(rows) > 1e-3 and objective.loss({}) == objective.dense
