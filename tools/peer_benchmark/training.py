"""Training that all methods get alike: images shifted and mirrored, momentum, and a rate that falls as a cosine."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

MOMENTUM, DECAY, BATCH, SHIFT = 0.9, 5e-4, 128, 4
Batch = tuple[Tensor, Tensor]


def loss(output: Tensor, batch: Batch) -> Tensor:
    """The cross entropy of the logits of a batch."""
    return cross_entropy(output, batch[1])


@dataclass(frozen=True)
class Loader:
    """Batches of images in a new order every time, shifted and mirrored at random by a seed."""

    data: Batch
    seed: int = 0
    size: int = BATCH

    def __len__(self) -> int:
        return len(self.data[1]) // self.size

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.data[1]))
        for at in torch.split(order[: len(self) * self.size], self.size):
            yield augmented(self.data[0][at]), self.data[1][at]


def augmented(x: Tensor) -> Tensor:
    """Images of shape (n, 3, height, width), half of them mirrored, each shifted by up to `SHIFT` pixels."""
    n, channels, height, width = x.shape
    x = torch.where(torch.rand(n, 1, 1, 1) < 0.5, x.flip(3), x)
    top, left = (torch.randint(2 * SHIFT + 1, (n, 1)) for _ in range(2))
    rows, columns = (top + torch.arange(height))[:, None, :, None], (left + torch.arange(width))[:, None, None, :]
    at = torch.arange(n)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    return pad(x, [SHIFT] * 4)[(*at, rows, columns)]


@dataclass(frozen=True)
class Training:
    """Epochs of training on `data` by a seed.

    `penalty` returns what joins the loss, `on_gradients` changes gradients before a step, and `on_epoch` gets the
    number of an epoch that has ended and the optimizer; it returns another one where it made new parameters.
    """

    data: Batch
    epochs: int
    seed: int = 0
    rate: float = 0.02
    penalty: Callable[[], Tensor] | None = None
    on_gradients: Callable[[], None] | None = None
    on_epoch: Callable[[int, Any], Any] | None = None

    def run(self, model: nn.Module, optimizer: Any = None) -> nn.Module:
        """Train a model in place; it is in evaluation mode afterwards."""
        torch.manual_seed(self.seed)
        loader, step = Loader(self.data), 0
        optimizer = optimizer or sgd(model)
        for epoch in range(self.epochs):
            model.train()
            for batch in loader:
                step += 1
                self._step(model, optimizer, batch, step / (self.epochs * len(loader)))
            if self.on_epoch is not None:
                optimizer = self.on_epoch(epoch, optimizer)
        return model.eval()

    def _step(self, model: nn.Module, optimizer: Any, batch: Batch, part: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, 0.1 + 20 * part) * 0.5 * (1 + math.cos(math.pi * part))
        total = loss(model(batch[0]), batch)
        total = total + self.penalty() if self.penalty is not None else total
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        if self.on_gradients is not None:
            self.on_gradients()
        optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the training."""
    return torch.optim.SGD(model.parameters(), 0.02, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer with which transformers are trained from random weights."""
    return torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
