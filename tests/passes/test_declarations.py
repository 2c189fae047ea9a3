"""A pass reads only facts that it declares, leaves those that it promises, and drops no others."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphprune.frontends.modules import trace
from graphprune.ir.program import Program
from graphprune.workflows.recipes.catalogue import RECIPES
from tests.declared_facts import broken_promises
from tests.recipes import pipeline_of

MORE = [
    "analyze | calibrate | score{by=obs} | measure-sensitivity{ratios=0.5} | allocate{by=sensitivity} | select | "
    "rewrite | refit | batch-norm-statistics | verify",
    "analyze | calibrate | score{by=fasp} | allocate{by=evolutionary} | select | rewrite | verify",
    "analyze | calibrate | allocate-ranks{by=error} | factorize",
]


class Blocks(nn.Module):
    """Residual blocks of attention heads and neurons under norms by root mean squares."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.RMSNorm(12), nn.RMSNorm(12)
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.up, self.down = nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        q, k, v = (layer(y).unflatten(2, (3, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(torch.relu(self.up(self.second(x))))  # type: ignore[no-any-return]


def network() -> Program:
    torch.manual_seed(0)
    return trace(Blocks(), (torch.randn(2, 6, 5),))


def batches() -> Any:
    generator = torch.Generator().manual_seed(1)
    return tuple(((torch.randn(4, 6, 5, generator=generator),), {}) for _ in range(9))


def squares(output: Tensor, batch: int) -> Tensor:
    return output.square().mean()


@pytest.mark.parametrize("name", [*(name for name in RECIPES if not RECIPES[name].score), *MORE])
def test_a_pass_reads_what_it_declares_and_leaves_what_it_promises(name: str) -> None:
    """Recipes with a score are recorded by the test that runs them (test_conformance)."""
    own: dict[str, Any] = {"recipe": name} if name in RECIPES else {"pipeline": name}
    passes = pipeline_of(**own, sparsity=0.2, batches=batches(), loss=squares, trials=2)
    with broken_promises() as broken:
        passes(network())
    assert broken == []
