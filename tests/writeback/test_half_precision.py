"""Where rounding in half precision decides a choice, single precision tells it from a wrong module."""

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import TraceError, VerificationError
from graphprune.frontends.trace_check import CapturedModule, check
from graphprune.ir.program import Program
from graphprune.writeback.narrowing import compare_case, make_case


class Routed(nn.Module):
    """A row of a table by the greatest of four scores, which may be summed in parts."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.scores, self.table = nn.Parameter(torch.randn(64, 4)), nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        width = 64 // self.parts
        sums = [x[:, i : i + width] @ self.scores[i : i + width] for i in range(0, 64, width)]
        return self.table[sum(sums[1:], sums[0]).argmax(1)]


def routed(parts: int, scale: float = 1.0) -> Routed:
    torch.manual_seed(0)
    module = Routed(parts).bfloat16().eval()
    module.scores.data[:, 0] *= scale
    return module


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(1)
    return gp.trace(routed(1), (torch.randn(4096, 64).bfloat16(),))


def test_a_choice_by_rounding_is_no_difference(program: Program) -> None:
    x = program.inputs[0][0]
    assert not torch.equal(routed(1)(x), routed(16)(x))
    assert compare_case(routed(16), program, make_case(program, 0), 0).max_error < 1e-3
    assert not check(program, CapturedModule.of(routed(16))).unchecked


def test_a_wrong_choice_is_one(program: Program) -> None:
    with pytest.raises(VerificationError, match="they differ by"):
        compare_case(routed(16, 1.2), program, make_case(program, 0), 0)
    with pytest.raises(TraceError, match="does not compute what the module does"):
        check(program, CapturedModule.of(routed(16, 1.2)))
