"""Budgets count what the cut model really has: parameters, multiply-accumulates, bytes of cache."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import graphprune as gp
from graphprune.axes.groups import Dependencies
from graphprune.errors import PlanError
from graphprune.frontends.modules import trace
from graphprune.ir.program import Program
from graphprune.passes.analysis.find_groups import analyze
from graphprune.planning.budget import UNITS, Budget, Knob

Tiny = Callable[..., nn.Module]
Inputs = Callable[[str], dict[str, Any]]


def of(program: Program, unit: str) -> Budget:
    found: Dependencies = analyze(program)
    return Budget(found, [Knob.of([group]) for group in found.groups if group.exact], 0, program.parameters, unit)


def macs(program: Program) -> float:
    """Multiply-accumulates of linear maps, convolutions and attention, counted by torch."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        program.module()(*program.inputs[0], **program.inputs[1])
    return float(counter.get_total_flops() / 2)


def cache(model: Program) -> int:
    """Elements of keys and values for one token."""
    found = [n for n in model.graph.nodes if n.target is torch.ops.aten.scaled_dot_product_attention.default]
    return sum(int(n.args[i].meta["val"].shape[1] * n.args[i].meta["val"].shape[3]) for n in found for i in (1, 2))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((kind, {}) for kind in ("llama", "gpt2", "bert", "resnet-basic", "resnet-bottleneck")),
        *((kind, {"attn_implementation": "eager"}) for kind in ("llama", "bert")),
    ],
)
def test_multiply_accumulates_are_those_that_torch_counts(
    tiny: Tiny, inputs: Inputs, kind: str, changes: dict[str, Any]
) -> None:
    program = trace(tiny(kind, **changes), (), inputs(kind))
    budget = of(program, "macs")
    assert budget.total == pytest.approx(macs(program), rel=1e-6)
    plan = gp.plan(program, ratio=0.5, recipe="random")
    gone = budget.removed({**{g.name: g.size for k in budget.knobs for g in k.groups}, **plan.widths})
    assert budget.total - gone == pytest.approx(macs(gp.apply(program, plan)), rel=1e-6)


def test_convolutions_of_any_groups_are_counted() -> None:
    layers = (
        nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(8, 8, 3, stride=2, groups=8), nn.Conv2d(8, 12, 1),
        nn.Conv2d(12, 8, 3, groups=4), nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8),
        nn.ConvTranspose2d(8, 6, 3, stride=2), nn.Conv2d(6, 4, 3),
    )  # fmt: skip
    program = trace(nn.Sequential(*layers).eval(), (torch.randn(2, 3, 11, 11),))
    assert of(program, "macs").total == macs(program)
    small = gp.apply(program, gp.plan(program, ratio=0.5))
    assert of(small, "macs").total == macs(small) < 0.5 * macs(program)


@pytest.mark.parametrize("unit", ["macs", "kv_cache"])
def test_a_budget_in_another_unit_is_met(tiny: Tiny, inputs: Inputs, unit: str) -> None:
    program = trace(tiny("gpt2", use_cache=False, n_embd=64, n_head=8), (), inputs("gpt2"))
    measure = {"macs": macs, "kv_cache": cache}[unit]
    for sparsity in (0.2, 0.5):
        small = gp.apply(program, gp.plan(program, sparsity=sparsity, budget=unit))
        assert measure(small) == pytest.approx((1 - sparsity) * measure(program), rel=0.03)


def test_the_unit_is_named_where_it_cannot_be_met(tiny: Tiny, inputs: Inputs) -> None:
    program = trace(tiny("vit"), (), inputs("vit"))
    with pytest.raises(PlanError, match="to remove [0-9,]+ multiply-accumulates of an example input"):
        gp.plan(program, sparsity=0.99, budget="macs")
    with pytest.raises(PlanError, match="no budget in 'seconds'; choose one of parameters, macs, kv_cache"):
        gp.plan(program, sparsity=0.2, budget="seconds")
    with pytest.raises(PlanError, match="blocks are dropped until enough parameters are removed, not macs"):
        gp.plan(program, sparsity=0.2, budget="macs", recipe="sleb")
    with pytest.raises(PlanError, match="nothing is known of latencies; put measure-latency before allocate"):
        _ = of(program, "latency").total
    assert [of(program, unit).total > 0 for unit in UNITS if unit != "latency"] == [True, True, True]


class Optional(nn.Module):
    """Two layers, and a third that only another call uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor, image: torch.Tensor | None = None) -> Any:
        h = torch.relu(self.a(x))
        return self.b(h if image is None else h + self.unused(image))


def test_a_budget_is_a_share_of_all_parameters_also_of_those_outside_the_call() -> None:
    program = trace(Optional(), (torch.randn(2, 8),))
    small = gp.apply(program, gp.plan(program, sparsity=0.2))
    assert (program.count(), program.constants) == (212, 85)
    assert program.count() - small.count() == pytest.approx(0.2 * (212 + 85), abs=13 / 2)
    with pytest.raises(
        PlanError, match=r"the target is .* 267 .*\(89.9%\).*; 85 of 297 parameters are not used by the"
    ):
        gp.plan(program, sparsity=0.9)
