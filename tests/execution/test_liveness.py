"""Units that no case of a proof activates get further cases, or are named."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import VerificationError
from graphprune.execution.equivalence import verify_cut
from graphprune.ir.weights import Layered
from graphprune.planning.plan import make


def network(bias: float) -> tuple[gp.Program, gp.Program, gp.Plan]:
    """A cut network whose last two units, both retained, are active where their inputs exceed the negative bias."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
    with torch.no_grad():
        for parameter in (*first.parameters(), *second.parameters()):
            parameter.normal_()
        first.get_parameter("bias")[6:] = bias
    program = gp.trace(nn.Sequential(first, nn.ReLU(), second).eval(), (torch.randn(2, 3, 2, 2),))
    plan = make(program, gp.analyze(program), {"0.weight:0": ((4, 5, 6, 7),)})
    return program, gp.apply(program, plan), plan


def swapped(small: gp.Program) -> gp.Program:
    """The cut network with the weights of the last two units exchanged where they are read."""
    wrong = small.weights["2.weight"].clone()
    wrong[:, [2, 3]] = wrong[:, [3, 2]]
    return replace(small, weights=Layered(({"2.weight": wrong}, small.weights)))


def test_units_that_strong_inputs_activate_are_seen() -> None:
    program, small, plan = network(-9.0)
    verify_cut(program, swapped(small), plan.keep)  # blind: no case activates them
    with pytest.raises(VerificationError, match="they differ by"):
        gp.verify(program, swapped(small), plan)
    proof = gp.verify(program, small, plan)
    assert not proof.unseen and proof.cases == 6


def test_cases_follow_while_they_see_more() -> None:
    assert gp.verify(*network(-52.0)).cases == 8  # of the first two, one activates a unit
    assert gp.verify(*network(-1e6)).cases == 6  # the first two of them see nothing


def test_units_that_nothing_activates_are_named() -> None:
    program, small, plan = network(-1e6)
    assert gp.verify(program, small, plan).unseen == ("2 of 8 indices of 0.weight:0",)
    assert not gp.verify(*network(0.0)).unseen
