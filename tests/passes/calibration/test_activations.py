"""No activation of torch.nn is without a rule, and all that work index by index leave their channels free."""

import pytest
import torch
from torch import nn
from torch.nn.modules import activation

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
