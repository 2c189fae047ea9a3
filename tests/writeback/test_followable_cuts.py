"""A plan spends its budget on what the module can follow, names what it cannot, and leaves the module as it was."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import PlanError
from tests.written import Attention, X


class Reshaping(nn.Module):
    """The first width is computed from the input, so that the module cannot have it narrower; the second is free."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.wide, self.narrow = nn.Linear(16, 40), nn.Linear(40, 4)

    def forward(self, x: Tensor) -> Any:
        y = _like(self.up(x).tanh() * self.gate(x), x)
        return self.narrow(self.wide(self.down(y)).relu())


def _like(y: Tensor, x: Tensor) -> Tensor:
    return y.reshape(x.shape)


@pytest.fixture(scope="module")
def reshaping() -> gp.Program:
    torch.manual_seed(0)
    return gp.trace(Reshaping().eval(), (torch.randn(3, 5, 16),))


def module_of(program: gp.Program) -> nn.Module:
    assert program.captured is not None
    return program.captured


def test_the_budget_is_spent_on_what_the_module_can_follow(reshaping: gp.Program) -> None:
    module = module_of(reshaping)
    before = {name: id(parameter) for name, parameter in module.named_parameters()}
    padded = gp.plan(reshaping, sparsity=0.3)
    plan = gp.plan(reshaping, sparsity=0.3, follow=True)
    assert {name: id(parameter) for name, parameter in module.named_parameters()} == before
    assert "up.weight:0" in padded.groups and "up.weight:0" not in plan.groups
    assert list(plan.wide) == ["up.weight:0"] and "not cut, since the module cannot follow: up.weight:0" in repr(plan)
    small = gp.apply(reshaping, plan)
    assert small.count() / reshaping.count() == pytest.approx(0.7, abs=0.03)


def test_groups_whose_size_the_module_reads_from_one_place_get_one_width() -> None:
    torch.manual_seed(0)
    module = Attention().eval()  # one head_dim reshapes queries, keys and values
    for parameter in (module.v.weight, module.v.bias):
        parameter.data.view(2, 8, -1)[:, 2:] *= 1e-3  # values would be narrower than keys
    program = gp.trace(module, (X,))
    names = [group.name for group in gp.analyze(program).groups if group.size == 8]
    free, plan = (gp.plan(program, sparsity=0.3, allocation="global", follow=follow) for follow in (False, True))
    assert len({free.widths[name] for name in names}) == len(names) == 2
    assert not plan.wide and len({plan.widths[name] for name in names}) == 1
    small = gp.apply(program, plan)
    assert not small.write_back(module).padded
    assert torch.allclose(module(X), small.module()(X), atol=1e-5)


def test_a_module_pruned_in_memory_is_not_padded(reshaping: gp.Program) -> None:
    torch.manual_seed(0)
    module = Reshaping()
    result = gp.prune(module, (torch.randn(3, 5, 16),), sparsity=0.3)
    assert not result.written_back[""].padded and module.up.out_features == 16
    assert 1 - result.report.sparsity_reached == pytest.approx(0.7, abs=0.03)


def test_without_a_module_that_has_the_parameters_there_is_no_trial(reshaping: gp.Program) -> None:
    with pytest.raises(PlanError, match="no module in memory that could follow a cut: capture one"):
        gp.plan(replace(reshaping, captured=None), ratio=0.5, follow=True)
    module = Reshaping().eval()
    program = gp.trace(module, reshaping.inputs[0])
    gp.apply(program, gp.plan(program, ratio=0.5, follow=True)).write_back(module)
    with pytest.raises(PlanError, match="Reshaping has other parameters than when it was captured"):
        gp.plan(program, ratio=0.5, follow=True)


def test_factors_of_a_low_rank_are_refused_before_any_work(reshaping: gp.Program) -> None:
    with pytest.raises(PlanError, match="a module cannot follow the factors of recipe mpifa"):
        gp.plan(reshaping, sparsity=0.2, recipe="mpifa", follow=True)


class Residual(nn.Module):
    """Residual blocks, of which some are dropped before the others are narrowed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


def test_cuts_are_tried_before_blocks_are_dropped() -> None:
    torch.manual_seed(0)
    module, x = Residual(), torch.randn(5, 4)
    result = gp.prune(module, (x,), drop_blocks=[0], ratio=0.5, recipe="magnitude")
    assert len(module.blocks) == 2 and module.first.out_features == 3
    assert result.program is not None
    torch.testing.assert_close(module(x), result.program.module()(x))
