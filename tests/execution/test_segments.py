"""What depends on no parameter is made once for batches that are alike, and never for those that are not."""

import pytest
import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.execution.segments import Constants


class Masked(nn.Module):
    """A map whose outputs a table, made of the mask alone, scales."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y: Tensor = self.map(x) * (mask.cumsum(1) * 2).unsqueeze(-1)
        return y


@pytest.fixture(scope="module")
def program() -> gp.Program:
    return gp.trace(Masked().eval(), (torch.randn(2, 3, 4), torch.ones(2, 3)))


MASKS = torch.ones(2, 3), torch.ones(2, 3), torch.tensor([[1.0, 1, 0], [1, 1, 1]]), torch.ones(1, 3)


@pytest.mark.parametrize("most", [0, 30, 1 << 20])
def test_they_are_those_of_every_batch(program: gp.Program, most: int) -> None:
    kept = Constants(program, most)
    for mask in (*MASKS, *MASKS):
        batch = torch.randn(len(mask), 3, 4), mask
        found, direct = kept.of(batch), Constants(program).of(batch)
        assert found.keys() == direct.keys() and len(direct) == 2
        for name, value in direct.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)
        assert sum(value.nbytes for _, values in kept.made for value in values.values()) <= most


def test_batches_of_the_same_mask_share_them(program: gp.Program) -> None:
    kept = Constants(program, 1 << 20)
    found = [kept.of((torch.randn(len(mask), 3, 4), mask)) for mask in MASKS]
    assert len(kept.made) == 3
    assert found[0].keys() == found[1].keys()
    assert sum(found[0][name] is found[1][name] for name in found[0]) == 1, "all but the inputs"
