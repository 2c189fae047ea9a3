"""A small network and its training, which tests of pruners share."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import graphprune as gp


class Net(nn.Module):
    """Two convolutions with a batch norm, and a classifier whose inputs are counted by an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.features = 12
        self.first, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.second, self.head = nn.Conv2d(16, self.features, 3), nn.Linear(self.features, 4)

    def forward(self, x: Tensor) -> Any:
        y = torch.relu(self.second(torch.relu(self.norm(self.first(x))))).amax((2, 3))
        return self.head(y.view(-1, self.features))


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 3, 8, 8, generator=generator), torch.arange(16) % 4) for _ in range(count)]


def loss(output: Tensor, batch: Any) -> Any:
    return cross_entropy(output, batch[1])


X = batches(1)[0][0][:2]


def made(**options: Any) -> tuple[Any, torch.optim.Optimizer, Any]:
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    given: dict[str, Any] = {
        "sparsity": 0.5,
        "rounds": 3,
        "optimizer": optimizer,
        "data": batches(),
        "loss": loss,
    } | options
    return net, optimizer, gp.Pruner(net, (X,), **given)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, pruner: Any, epochs: int = 1) -> float:
    for _ in range(epochs):
        for batch in batches():
            value = loss(net(batch[0]), batch) + pruner.penalty()
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
    return float(value.detach())


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())
