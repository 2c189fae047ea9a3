"""Differences that are small, and yet no rounding, as those of a wrong scale of small attention scores."""

import pytest
import torch
from torch import nn

from graphprune.errors import VerificationError
from graphprune.frontends.modules import trace
from graphprune.writeback.narrowing import compare_case, make_case


def test_a_difference_beyond_rounding_is_refused_however_small() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 8)).eval()
    program = trace(module, (torch.randn(4, 16),))
    case = make_case(program, 0)
    assert compare_case(module, program, case, 0).max_error < 1e-4
    with torch.no_grad():
        module.get_parameter("2.weight").mul_(1 + 2e-4)
    with pytest.raises(VerificationError, match="beyond rounding, they differ by"):
        compare_case(module, program, case, 0)
