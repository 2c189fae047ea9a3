"""The width of a residual stream: exact under RMS norms once they are rescaled, approximate under layer norms."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.ir.program import Program, Rewritten
from graphprune.passes.analysis.find_groups import analyze
from graphprune.passes.rewriting.rewrite import rewrite
from graphprune.planning.plan import make

Norm = Callable[[], nn.Module]


class Written(nn.Module):
    """An RMS norm as models write it; `unit` adds one to its weight."""

    def __init__(self, unit: bool = False, eps: float = 0.1) -> None:
        super().__init__()
        self.weight, self.unit, self.eps = nn.Parameter(torch.rand(16) + 0.5), unit, eps

    def forward(self, x: Tensor) -> Tensor:
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return normed * (self.weight + 1 if self.unit else self.weight)


class Root(Written):
    """The same as a quotient by a root."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x / ((x * x).mean(-1, keepdim=True) + self.eps).sqrt())


class Stream(nn.Module):
    """A residual stream with two pre-normed layers and a head."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.into, self.out = nn.Embedding(9, 16), nn.Linear(16, 5)
        self.norms = nn.ModuleList(norm() for _ in range(3))
        self.ups = nn.ModuleList(nn.Linear(16, 12) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(12, 16) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.into(ids)
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=False):
            x = x + down(torch.relu(up(norm(x))))
        return self.out(self.norms[2](x))  # type: ignore[no-any-return]


def narrowed(norm: Norm) -> tuple[Stream, Program, Program, Any]:
    """A stream of width 16, cut to 6, and the plan."""
    torch.manual_seed(0)
    module = Stream(norm).eval()
    program = gp.trace(module, (torch.randint(0, 9, (3, 7)),))
    (group,) = (g for g in analyze(program).groups if g.size == 16)
    plan = make(program, gp.analyze(program), {group.name: ((0, 3, 5, 6, 11, 15),)})
    return module, program, rewrite(program, plan), plan


FOLDED = [
    pytest.param(Written, id="written-out"),
    pytest.param(Root, id="quotient"),
    pytest.param(lambda: nn.RMSNorm(16, eps=0.1), id="fused"),
    pytest.param(lambda: nn.RMSNorm(16), id="fused, default epsilon"),
    pytest.param(lambda: nn.RMSNorm(16, elementwise_affine=False), id="no weight: the next layer takes the factor"),
    pytest.param(lambda: Written(unit=True), id="weight plus one: so does the next layer"),
]


@pytest.mark.parametrize("norm", FOLDED)
def test_a_narrow_rms_norm_gives_the_numbers_of_the_masked_one(norm: Norm) -> None:
    _, program, small, plan = narrowed(norm)
    (group,) = (g for g in gp.analyze(program).groups if g.size == 16)
    assert not group.exact and group.rescaled and group.maskable
    assert gp.verify(program, small, plan).max_error <= 1e-5
    assert small.count() < 0.5 * program.count()


@pytest.mark.parametrize("norm", FOLDED)
def test_the_factor_goes_into_weights_not_into_the_graph(norm: Norm) -> None:
    _, program, small, _ = narrowed(norm)
    assert len(small.graph.nodes) == len(program.graph.nodes)
    factors = small.fact(Rewritten).scales.values()
    assert len(factors) == 3 and all(factor == pytest.approx((16 / 6) ** 0.5) for factor in factors)


def test_a_shared_norm_is_scaled_once_and_right() -> None:
    shared = Written()
    _, program, small, plan = narrowed(lambda: shared)
    assert gp.verify(program, small, plan).max_error <= 1e-5


def test_a_module_can_follow() -> None:
    module, _, small, _ = narrowed(lambda: Written(eps=1e-6))
    before = copy.deepcopy(module.norms.state_dict()["0.weight"])
    assert small.write_back(module).verification.max_error <= 1e-4
    kept = before[[0, 3, 5, 6, 11, 15]]
    assert torch.allclose(module.norms.state_dict()["0.weight"], kept * (16 / 6) ** 0.5)


def test_a_layer_norm_is_declared_approximate() -> None:
    _, program, small, plan = narrowed(lambda: nn.LayerNorm(16))
    (group,) = (g for g in gp.analyze(program).groups if g.size == 16)
    assert not group.maskable and "it is normalized here" in group.inexact_because
    assert gp.verify(program, small, plan).max_error <= 1e-5  # finite, and exact where nothing is cut


def test_by_default_no_residual_width_is_cut() -> None:
    _, program, _, _ = narrowed(Written)
    sizes = {gp.analyze(program).by_name[name].size for name in gp.plan(program, ratio=0.5).groups}
    assert sizes == {12}
    every = gp.plan(program, ratio=0.5, exact_only=False)
    assert {gp.analyze(program).by_name[name].size for name in every.groups} == {12, 16}
    assert gp.verify(program, gp.apply(program, every), every).max_error <= 1e-5


class Averaged(nn.Module):
    """A mean over channels whose factor no weight can take."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        return self.last(torch.tanh(y.mean(1, keepdim=True))) * y.sum(1, keepdim=True)  # type: ignore[no-any-return]


def test_where_no_weight_can_take_the_factor_the_graph_does() -> None:
    torch.manual_seed(0)
    program = gp.trace(Averaged(), (torch.randn(4, 6),))
    plan = gp.plan(program, ratio=0.5, exact_only=False)
    small = gp.apply(program, plan)
    assert gp.verify(program, small, plan).max_error <= 1e-5 and plan.widths
    assert len(small.graph.nodes) == len(program.graph.nodes) + 1 and not small.fact(Rewritten).scales
