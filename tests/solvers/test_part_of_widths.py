"""The share of a reduction for narrower layers, where lower ranks take a part of that of layers with factors."""

from typing import Any

import pytest
import torch

import graphprune as gp
from graphprune.passes.selection.select import knobs
from graphprune.planning.facts import Eligible
from graphprune.solvers.factorable import part_of_widths
from tests.test_expert_families import mixture


@pytest.fixture(scope="module")
def program() -> gp.Program:
    """A mixture of experts, in which attention alone can have factors."""
    ids = torch.randint(60, (2, 8))
    return gp.Analyze()(gp.trace(mixture("mixtral"), (), {"input_ids": ids, "use_cache": False}))


@pytest.mark.parametrize(
    ("narrowed", "protect", "expected"),
    [("KV heads", (), 0.6), ("neurons", (), 1.0), ("KV heads", ("*",), 1.0)],
)
def test_ranks_take_a_share_of_what_they_can_lower(
    program: gp.Program, narrowed: str, protect: Any, expected: float
) -> None:
    chosen = knobs(program.fact(Eligible), 1)
    shares = {group.name: 0.5 if group.label == narrowed else 1.0 for knob in chosen for group in knob.groups}
    assert min(shares.values()) == 0.5
    assert part_of_widths(program, 0.6, protect, chosen, shares) == pytest.approx(expected)


def test_ranks_take_a_share_of_what_all_layers_lose(program: gp.Program) -> None:
    chosen = knobs(program.fact(Eligible), 1)
    shares = {group.name: 0.5 for knob in chosen for group in knob.groups}
    assert 0.6 < part_of_widths(program, 0.6, (), chosen, shares) < 1
