"""A small residual CNN with batch norms, trained within seconds to tell the angles of stripes in noisy images."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Batch = tuple[Tensor, Tensor]
CLASSES, SIDE, NOISE = 10, 12, 1.2


class Block(nn.Module):
    """Two convolutions with batch norms, and a shortcut around them."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(channels, out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """From shape (n, channels, h, w) to (n, out, h / stride, w / stride)."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class SmallCNN(nn.Module):
    """A stem, three residual blocks of 24 and 48 channels, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24)
        self.blocks = nn.Sequential(Block(24, 24, 1), Block(24, 48, 2), Block(48, 48, 1))
        self.head = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """From images of shape (n, 3, h, w) to logits of shape (n, CLASSES)."""
        features = self.blocks(torch.relu(self.bn(self.stem(x))))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def stripes(count: int, seed: int) -> list[Batch]:
    """Batches of 64 noisy images with their classes, which are the angles of the stripes."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(CLASSES, (count,), generator=generator)
    phase, tint = torch.rand(count, generator=generator), torch.rand(count, 3, 1, 1, generator=generator)
    angle = (classes * math.pi / CLASSES).view(-1, 1, 1)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    waves = torch.sin(1.2 * (x * angle.cos() + y * angle.sin()) + 2 * math.pi * phase.view(-1, 1, 1))
    images = tint * waves[:, None] + NOISE * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return list(zip(torch.split(images, 64), torch.split(classes, 64), strict=True))


def loss(output: Tensor, batch: Batch) -> Tensor:
    """The cross entropy of the logits of a batch."""
    return cross_entropy(output, batch[1])


def right(output: Tensor, batch: Batch) -> Tensor:
    """The share of images of a batch whose class has the largest logit."""
    return (output.argmax(1) == batch[1]).float().mean()


def trained(epochs: int = 4) -> tuple[nn.Module, list[Batch], list[Batch]]:
    """A trained network in eval mode, its training batches, and batches to test on."""
    torch.manual_seed(0)
    train = stripes(2048, seed=0)
    return train_on(SmallCNN(), train, epochs), train, stripes(2048, seed=1)


def train_on(model: nn.Module, train: list[Batch], epochs: int) -> nn.Module:
    """Train a network in place, and put it into eval mode."""
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=epochs * len(train))
    for _ in range(epochs):
        for batch in train:
            optimizer.zero_grad()
            loss(model(batch[0]), batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    """The share of images whose class has the largest logit."""
    known = torch.cat([model(images).argmax(1) == classes for images, classes in batches])
    return float(known.float().mean())
