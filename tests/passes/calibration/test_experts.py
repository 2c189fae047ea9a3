"""Scores and refits of experts against direct computations on the rows that are routed to each."""

from typing import Any

import pytest
import torch
import transformers.integrations.moe  # noqa: F401  # registers its operator
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import PlanError
from graphprune.ir.program import Program, Rewritten
from graphprune.passes.analysis.analyze import Analyze
from graphprune.passes.scores.score import Score
from graphprune.pipeline import parse
from graphprune.planning.facts import Refits, Scores
from graphprune.planning.plan import Plan
from graphprune.solvers.normal_equations import DEFAULT_DAMPING

EXPERTS, WIDTH, IDLE = 4, 8, 3


class Mixture(nn.Module):
    """Two of four experts process every row; the last expert never does. With `masked`, every expert reads all rows."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.router, self.masked = nn.Linear(6, EXPERTS), masked
        nn.init.constant_(self.router.bias[IDLE:], -1e4)
        self.up, self.down = nn.Parameter(torch.randn(EXPERTS, 6, WIDTH)), nn.Parameter(torch.randn(EXPERTS, 5, WIDTH))

    def forward(self, x: Tensor) -> Any:
        weights, chosen = self.router(x).topk(2)
        weights = weights.softmax(1)
        if self.masked:
            gates = (nn.functional.one_hot(chosen, EXPERTS) * weights[:, :, None]).sum(1)
            rows = torch.relu(torch.bmm(x.expand(EXPERTS, -1, -1), self.up)) @ self.down.mT
            return (rows * gates.T[:, :, None]).sum(0)
        expert, order = chosen.flatten().sort()
        offsets = torch.histc(expert.float(), EXPERTS, 0, EXPERTS - 1).cumsum(0, dtype=torch.int32)
        product = torch.ops.transformers.grouped_mm_fallback
        rows = product(torch.relu(product(x[order // 2], self.up, offsets)), self.down.mT, offsets)
        rows = rows * weights.flatten()[order, None]
        return torch.zeros_like(rows).index_put((order,), rows).view(-1, 2, 5).sum(1)


def inputs(net: Mixture, x: Tensor) -> list[Tensor]:
    """The rows that every down projection multiplies, by a loop over experts."""
    if net.masked:
        return [torch.relu(x @ net.up[e]) for e in range(EXPERTS)]
    chosen = net.router(x).topk(2)[1]
    return [torch.relu(x[(chosen == e).any(1)] @ net.up[e]) for e in range(EXPERTS)]


@pytest.fixture(scope="module", params=[False, True], ids=["routed", "masked"])
def pruned(request: pytest.FixtureRequest) -> tuple[Mixture, Tensor, Program]:
    torch.manual_seed(0)
    net, x = Mixture(request.param).double(), torch.randn(60, 6, dtype=torch.float64)
    program = gp.trace(net, (x[:7],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    calls: Any = ((((x[:30]),), {}), (((x[30:]),), {}))
    steps = parse("analyze | calibrate | score{by=fasp} | allocate | select | rewrite | refit | verify", {
        "batches": calls, "ratio": 0.5, "damping": 0.01,
    })  # fmt: skip
    return net, x, gp.Pipeline(steps)(program)


def test_an_expert_is_scored_by_the_rows_routed_to_it(pruned: tuple[Mixture, Tensor, Program]) -> None:
    net, x, program = pruned
    (scores,) = program.fact(Scores).by_group.values()
    assert scores.shape == (EXPERTS, WIDTH)
    rows = inputs(net, x)
    rows[IDLE] = rows[IDLE] if net.masked else torch.cat(rows)  # by the rows of all where none is routed to it
    right = [net.down[e].abs().sum(0) * rows[e].norm(dim=0) for e in range(EXPERTS)]
    torch.testing.assert_close(scores, torch.stack(right).detach(), rtol=1e-9, atol=1e-9)


def test_an_expert_is_refitted_to_its_own_outputs(pruned: tuple[Mixture, Tensor, Program]) -> None:
    net, x, program = pruned
    plan, refit = program.fact(Plan), program.fact(Refits).by_weight["down"]
    (kept,) = plan.groups.values()
    assert refit.error_after < refit.error_before and program.fact(Refits).skipped == {}
    for e, rows in enumerate(inputs(net, x)):
        chosen, old = torch.tensor(kept[e]), net.down[e].detach()
        removed, gram = torch.tensor([i for i in range(WIDTH) if i not in kept[e]]), rows.T @ rows
        right = old[:, chosen]
        if len(rows):  # an expert without rows is unchanged
            damped = gram[chosen][:, chosen] + refit.damping * gram.diagonal().mean() * torch.eye(len(chosen))
            right = right + old[:, removed] @ gram[removed][:, chosen] @ torch.linalg.inv(damped)
        torch.testing.assert_close(program.weights["down"][e], right, rtol=1e-7, atol=1e-7)


def test_a_score_that_rates_no_stacks_names_those_that_do(
    pruned: tuple[Mixture, Tensor, Program], caplog: pytest.LogCaptureFixture
) -> None:
    program = Analyze()(pruned[2].fact(Rewritten).original)
    with pytest.raises(PlanError, match="no group is left that goa may cut"):
        Score("goa").preflight(program)
    assert "goa does not rate stacks of linear layers, such as experts: 1 groups" in caplog.text
    assert "scores that do are fasp, flap" in caplog.text


def test_experts_with_few_tokens_are_named_and_damped(
    pruned: tuple[Mixture, Tensor, Program], caplog: pytest.LogCaptureFixture
) -> None:
    net, x, program = pruned
    if net.masked:
        return  # every expert reads all rows
    calls: Any = (((x[:4],), {}), ((x[4:8],), {}))
    steps = parse("analyze | calibrate | score{by=fasp} | allocate | select | rewrite | refit | verify", {
        "batches": calls, "ratio": 0.5,
    })  # fmt: skip
    small = gp.Pipeline(steps)(program.fact(Rewritten).original.without(Rewritten))
    counts = [len(rows) for rows in inputs(net, x[:8])]
    rare = ", ".join(f"{e} ({count})" for e, count in enumerate(counts) if count < WIDTH)
    assert f"experts of down, fewer than the {WIDTH} columns of each: {rare}; their refits are damped" in caplog.text
    fitted = [len(rows) for rows in inputs(net, x[:4])]
    dampings = sorted(DEFAULT_DAMPING * WIDTH / count for count in fitted if 0 < count < WIDTH)
    assert small.fact(Refits).by_weight["down"].damping == pytest.approx(dampings[len(dampings) // 2])
