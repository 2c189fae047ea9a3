"""Recipe `best` for models of all kinds: without a loss, the outputs of the dense model are what it retains."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import graphprune as gp
from graphprune.display import progress
from graphprune.ir.program import Factored
from graphprune.passes.calibration.loss_of_outputs import projection
from graphprune.statistics.collector import Calibration

RECIPES = ("best", "magnitude")


class Encoder(nn.Module):
    """Token embeddings, self-attention and a feed-forward part, with shortcuts, and a mean over the tokens.

    The embeddings of rare tokens are almost of rank 4.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(256, 16)
        self.table.weight.data[64:] = torch.randn(192, 4) @ torch.randn(4, 16) / 2 + 0.001 * torch.randn(192, 16)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down, self.norm = nn.Linear(16, 48), nn.Linear(48, 16), nn.LayerNorm(16)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        q, k, v = (layer(x).unflatten(2, (4, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        pooled: Tensor = x.mean(1)
        return pooled


class Images(nn.Module):
    """Convolutions with batch norms, and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (16, 32, 16))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norms[0](self.stem(x)))
        x = x + self.norms[2](self.second(torch.relu(self.norms[1](self.first(x)))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def inputs(kind: type[nn.Module], seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    if kind is Images:
        return torch.randn(8, 3, 8, 8, generator=random)
    return (256 * torch.rand(8, 12, generator=random) ** 3).long()


@pytest.mark.parametrize("kind", [pytest.param(Encoder, marks=pytest.mark.slow), Images])
def test_it_prunes_models_without_a_loss(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = kind()
    for seed in range(1, 60):  # statistics of batch norms come from the data
        module(inputs(kind, seed))
    program = gp.trace(module.eval(), (inputs(kind, 0),))
    data: Any = [((inputs(kind, seed),), {}) for seed in range(1, 9)]
    small, worse = (gp.prune(program, recipe=recipe, sparsity=0.3, batches=data).program for recipe in RECIPES)
    assert small and worse
    assert 1 - small.count() / program.count() == pytest.approx(0.3, abs=0.02)
    factored = small.facts.get(Factored)
    assert (kind is Encoder) == (factored is not None and "table.weight" in factored.tables)
    new = inputs(kind, 100)
    with torch.no_grad():
        dense, after, other = (side.module()(new) for side in (program, small, worse))
    error, worst = (float((outputs - dense).square().mean()) for outputs in (after, other))
    assert error < 0.5 * worst


def test_every_long_pass_shows_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    program = gp.trace(Encoder().eval(), (inputs(Encoder, 0),))
    data: Any = [((inputs(Encoder, seed),), {}) for seed in range(1, 5)]
    shown, bar = dict[str, list[int]](), tqdm

    def recorded(**options: Any) -> Any:
        counts = shown.setdefault(options["desc"], [options["total"], 0])
        drawn = bar(**options)
        monkeypatch.setattr(drawn, "update", lambda count: counts.__setitem__(1, counts[1] + count))
        return drawn

    monkeypatch.setattr(progress, "tqdm", recorded)
    gp.prune(program, recipe="best", sparsity=0.4, batches=data)
    assert shown.keys() >= {"calibrating", "differentiating", "scoring groups", "measuring the loss by tables"}
    assert shown.keys() >= {"balancing kinds of groups", "measuring ranks of layers", "refitting"}
    exceeded = {what for what, (total, done) in shown.items() if not 0 < done <= total}
    unfinished = {what for what, (total, done) in shown.items() if done < total} - {"balancing kinds of groups"}
    assert not exceeded and not unfinished


def test_projections_have_the_squared_error_of_the_outputs() -> None:
    outputs = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    program = gp.trace(nn.Linear(6, 6), (torch.randn(4, 6),))
    calibration = Calibration([[torch.randn(4, 6)]] * 3000, "noise", 3000, 0, 0)
    loss, change = projection(program.with_facts(calibration)), torch.randn(4, 6, dtype=torch.float64)
    squares = []
    for i in range(3000):
        (gradient,) = torch.autograd.grad(loss(outputs, i), outputs)
        squares.append(float((gradient * change).sum().square()))
    expected = float(change.square().sum() / outputs.detach().square().sum())
    assert sum(squares) / len(squares) / 2 == pytest.approx(expected, rel=0.1)
