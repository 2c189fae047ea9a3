"""Tests of what follows a module that is written back: optimizers, averages, unused parameters and attributes."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import graphprune as gp
from graphprune.errors import WriteBackError
from graphprune.passes.depth.drop_blocks import drop
from tests.written import X, written


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def step(module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    loss = (module(x) - y).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


OPTIMIZERS: list[Callable[..., torch.optim.Optimizer]] = [
    lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    lambda p: torch.optim.AdamW(p, 0.01),
    lambda p: torch.optim.Adafactor(p, 0.01),
]


@pytest.mark.parametrize("make", OPTIMIZERS, ids=["sgd", "adamw", "adafactor"])
def test_training_goes_on_with_cut_moments(make: Callable[..., torch.optim.Optimizer]) -> None:
    module: Any = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4))
    optimizer, x, y = make(module.parameters()), torch.randn(32, 8), torch.randn(32, 4)
    for _ in range(2):
        step(module, optimizer, x, y)
    program = gp.trace(module, (x,))
    small = gp.apply(program, plan := gp.plan(program, ratio=0.5))
    masked: Any = copy.deepcopy((module, optimizer))
    result = small.write_back(module, optimizer=optimizer)
    assert not result.reset and {*optimizer.state} == {*module.parameters()}
    removed = sorted({*range(24)} - {*plan.keep["0.weight"][0].tolist()})
    with torch.no_grad():
        masked[0][0].weight[removed], masked[0][0].bias[removed], masked[0][2].weight[:, removed] = 0, 0, 0
    losses = step(module, optimizer, x, y), step(masked[0], masked[1], x, y)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    kept = plan.keep["0.weight"][0]
    if isinstance(optimizer, torch.optim.SGD):  # others divide by moments of the whole tensor, or by their root
        assert torch.allclose(module[0].weight, masked[0][0].weight[kept], atol=1e-6)
    assert step(module, optimizer, x, y) < losses[0]


def test_a_history_of_all_parameters_at_once_starts_anew() -> None:
    module = Residual()
    optimizer: Any = torch.optim.LBFGS(module.parameters(), 0.1, max_iter=2)

    def loss() -> float:
        optimizer.zero_grad()
        value = module(X).pow(2).mean()
        value.backward()
        return float(value.detach())

    optimizer.step(loss)
    short = drop(gp.trace(module, (X,)), ["blocks.1"])
    result = gp.apply(short, gp.plan(short, ratio=0.5)).write_back(module, optimizer=optimizer)
    before = loss()
    optimizer.step(loss)
    assert len(result.reset) == 1 and loss() < before


def test_an_optimizer_that_is_not_passed_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    module = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 32))
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    with caplog.at_level(logging.WARNING):
        written(module)
    assert "SGD holds parameters that the module no longer has" in caplog.text and optimizer.param_groups


def test_an_average_keeps_its_own_values() -> None:
    module: Any = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 32))
    average: Any = AveragedModel(module)
    with torch.no_grad():
        average.module[0].weight.mul_(2)
    expected = average.module[0].weight.detach().clone()
    program = gp.trace(module, (X,))
    small = gp.apply(program, plan := gp.plan(program, ratio=0.5))
    small.write_back(module, average=average)
    assert torch.equal(average.module[0].weight, expected[plan.keep["0.weight"][0]])
    assert average(X).shape == module(X).shape
    average.update_parameters(module)
    again = gp.trace(module, (X,))
    before = module[0].weight
    with pytest.raises(WriteBackError, match="no averaged copy"):
        gp.apply(again, gp.plan(again, ratio=0.5)).write_back(module, average=nn.Linear(2, 2))
    assert module[0].weight is before


class Residual(nn.Module):
    """Residual blocks, each of which can be dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 32)) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = x + block(x)
        return x


def test_optimizer_and_average_follow_dropped_blocks_and_the_cut_after_them(caplog: pytest.LogCaptureFixture) -> None:
    module: Any = Residual()
    average: Any = AveragedModel(module)
    optimizer = torch.optim.AdamW(module.named_parameters(), 0.01)
    step(module, optimizer, X, torch.zeros_like(X))
    program = gp.trace(module, (X,))
    short = drop(program, ["blocks.1"])
    small = gp.apply(short, gp.plan(short, ratio=0.5))
    small.write_back(module, optimizer=optimizer, average=average)
    own = [*module.parameters()]
    assert len(own) == 8 and module.blocks[0][0].out_features == average.module.blocks[1][0].out_features == 12
    (group,) = optimizer.param_groups
    assert {*group["params"]} == {*optimizer.state} == {*own} and len(group["param_names"]) == len(own)
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in own)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    step(module, optimizer, X, torch.zeros_like(X))
    average.update_parameters(module)


def test_an_optimizer_is_restored_where_an_average_cannot_follow() -> None:
    module: Any = Residual()
    optimizer = torch.optim.AdamW(module.parameters(), 0.01)
    step(module, optimizer, X, torch.zeros_like(X))
    before = list(optimizer.param_groups[0]["params"])
    program = gp.trace(module, (X,))
    small = drop(program, ["blocks.0"])
    with pytest.raises(WriteBackError, match="does not work without blocks.0"):
        small.write_back(module, optimizer=optimizer, average=nn.Linear(2, 2))
    assert len(module.blocks) == 3
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in before]
    assert {*optimizer.state} == {*before}


class Auxiliary(nn.Module):
    """Heads that run in training alone, a token that only a second argument uses, and a size for another method."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.token = 16, nn.Parameter(torch.randn(16))
        self.downsample_factor, self.patchSize = 16, 16  # no widths, though equal to one
        self.stem, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)
        self.aux = nn.Sequential(nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16), nn.Conv2d(16, 2, 1))
        self.probe = nn.Linear(16, 3)  # of another method

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        x = self.stem(x).relu()
        y = self.body(x).relu().mean((2, 3))
        y = self.head(y if mask is None else torch.where(mask[:, None], self.token, y))
        return (y, self.aux(x)) if self.training else y

    def features(self, x: Tensor) -> Any:
        return self.stem(x).unflatten(1, (self.width, -1))


def test_what_the_traced_call_does_not_use_follows() -> None:
    module, image = Auxiliary().train(), torch.randn(2, 3, 8, 8)
    program = gp.trace(module, (image,))
    small = gp.apply(program, gp.plan(program, ratio=0.5))
    result = small.write_back(module)
    assert not result.padded and {"aux.0.weight", "aux.1.running_mean", "aux.2.weight"} <= {*result.unused}
    assert module.training and "runs in training mode" in result.checked
    assert module(image)[1].shape == (2, 2, 6, 6) and result.undetermined == ("token", "probe.weight")
    assert result.assumed == ("Auxiliary.width = 8 (was 16)",) and module.features(image).shape[1] == 8
    assert module.downsample_factor == module.patchSize == 16


class Functional(Auxiliary):
    """The weight of an auxiliary head is no layer's, so that its group is padded."""

    def __init__(self) -> None:
        super().__init__()
        del self.aux, self.token
        self.side = nn.ParameterList([torch.randn(16, 2)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        x = self.stem(x).relu()
        y = self.head(self.body(x).relu().mean((2, 3)))
        return (y, x.mean((2, 3)) @ self.side[0]) if self.training else y


def test_a_group_that_only_training_needs_whole_is_padded() -> None:
    module, image = Functional().train(), torch.randn(2, 3, 8, 8)
    program = gp.trace(module, (image,))
    result = gp.apply(program, gp.plan(program, ratio=0.5)).write_back(module)
    assert list(result.padded) == ["stem.weight:0"] and module(image)[1].shape == (2, 2)


@pytest.mark.parametrize("layer", ["attention", "encoder"])
def test_attention_of_torch_becomes_narrow(layer: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(32, 32), nn.Linear(32, 8)
            if layer == "encoder":
                self.encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
            else:
                self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x: Tensor, padding: Tensor | None = None) -> Any:
            x = self.up(x)
            if layer == "encoder":
                return self.down(self.encoder(x, src_key_padding_mask=padding))
            y, _ = self.attention(x, x, x, key_padding_mask=padding)
            return self.down(x + y)

    module: Any = Model()
    _, result = written(module)
    narrow = module.attention if layer == "attention" else module.encoder.self_attn
    assert not result.padded and "MultiheadAttention.forward" in result.adapted
    assert isinstance(narrow, nn.MultiheadAttention) and narrow.in_proj_weight.shape[0] < 96
    assert narrow.kdim == narrow.in_proj_weight.shape[1] and not result.undetermined
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    alone = module(X[1:, :3])
    assert torch.allclose(module(X, padding)[1:, :3], alone, atol=1e-5)
    copied = copy.deepcopy(module)
    assert torch.equal(copied(X), module(X))
