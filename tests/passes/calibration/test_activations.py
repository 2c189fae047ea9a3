"""No activation of torch.nn is without a rule, and all that work index by index leave their channels free."""

import pytest
import torch
from torch import nn
from torch.nn.modules import activation

import graphprune as gp
from graphprune.errors import CalibrationError
from graphprune.frontends.modules import trace
from graphprune.passes.analysis.find_groups import analyze

OTHERS = {"MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "LogSoftmax", "GLU", "Threshold"}
NAMES = sorted(set(activation.__all__) - OTHERS)


@pytest.mark.parametrize("name", NAMES)
def test_an_activation_leaves_its_channels_free(name: str) -> None:
    layers = nn.Linear(6, 8), getattr(nn, name)(), nn.Linear(8, 3)
    found = analyze(trace(nn.Sequential(*layers).eval(), (torch.randn(2, 6),)))
    assert not found.opaque
    assert [(group.size, group.exact) for group in found.groups] == [(8, True)]


def test_batches_that_the_graph_does_not_hold_for_are_refused() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    program = gp.trace(net, (torch.randn(2, 4),), dynamic_shapes=({},))
    with pytest.raises(CalibrationError, match=r"the graph does not hold for calibration batch 0: .* 3 .* expected 2"):
        gp.plan(program, ratio=0.5, recipe="fasp", batches=[((torch.randn(3, 4),), {})])
