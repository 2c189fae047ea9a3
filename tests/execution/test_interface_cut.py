"""Inputs and outputs named as state may be narrower: the proof compares their retained indices."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import TraceError, VerificationError
from graphprune.ir.weights import Layered


class Encoder(nn.Module):
    """An embedding, with the hidden layer before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        hidden = torch.relu(self.first(x))
        return {"hidden": [hidden], "embedding": [self.second(hidden)]}


@pytest.fixture(scope="module")
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 8)


@pytest.mark.parametrize(
    ("pattern", "narrow"),
    [
        ("embedding.0", (8, 16, 16, 6)),
        ("*embedding*", (8, 16, 16, 6)),
        ("output 1", (8, 16, 16, 6)),
        ("hidden*", (8, 8, 8, 12)),
        ("*", (4, 8, 8, 6)),
    ],
)
def test_a_named_output_may_be_narrower_and_the_module_follows(
    pattern: str, narrow: tuple[int, ...], x: Tensor
) -> None:
    module = Encoder().eval()
    program = gp.trace(module, (x,), state=(pattern,))
    plan = gp.plan(program, ratio=0.5)
    small = gp.apply(program, plan)
    gp.verify(program, small, plan)
    assert not small.write_back(module).padded
    got = (module.first.in_features, module.first.out_features, module.second.in_features, module.second.out_features)
    assert got == narrow
    assert small.module()(*small.inputs[0])["embedding"][0].shape[1] == narrow[3]


def test_a_wrong_number_in_a_narrower_output_is_refused(x: Tensor) -> None:
    program = gp.trace(Encoder().eval(), (x,), state=("embedding*",))
    plan = gp.plan(program, ratio=0.5)
    small = gp.apply(program, plan)
    wrong = {"second.weight": small.weights["second.weight"].roll(1, 0)}
    with pytest.raises(VerificationError, match="they differ by"):
        gp.verify(program, replace(small, weights=Layered((wrong, small.weights))), plan)


def test_a_name_that_matches_nothing_is_refused_with_the_names(x: Tensor) -> None:
    with pytest.raises(
        TraceError, match=r"'logits' matches no input and no output; the inputs are x, the outputs hid.*"
    ):
        gp.trace(Encoder(), (x,), state=("logits",))
