"""Networks for small images, as graphprune and Torch-Pruning get them, and the images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.utils.flop_counter import FlopCounterMode

from tools.peer_benchmark.training import Training, sgd
from tools.recipe_benchmark.resnet import Block, ResNet, images

#: Factor of the inner channels, channels, blocks and stride of each stage.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
EXAMPLE = (1, 3, 32, 32)


class ConvolvedShortcut(nn.Module):
    """A block of `ResNet` whose shortcut is a convolution with the values that striding and padding channels have.

    Torch-Pruning follows no padding of channels; so both tools get a network of the same function without one.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        wide, out = block.conv1.in_channels, block.conv1.out_channels
        self.shortcut = nn.Conv2d(wide, out, 1, block.stride, bias=False)
        with torch.no_grad():
            self.shortcut.weight.zero_()
            self.shortcut.weight[block.more : block.more + wide, :, 0, 0] = torch.eye(wide)

    def forward(self, x: Tensor) -> Tensor:
        """From images of shape (n, wide, height, width) to (n, out, height / stride, width / stride)."""
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(self.shortcut(x) + y)


class Inverted(nn.Module):
    """An inverted residual block: widen, convolve each channel, and narrow."""

    def __init__(self, wide: int, out: int, factor: int, stride: int) -> None:
        super().__init__()
        inner = wide * factor
        self.adds = stride == 1 and wide == out
        widen = [*_normed(nn.Conv2d(wide, inner, 1, bias=False)), nn.ReLU6()] if factor > 1 else []
        each = [*_normed(nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)), nn.ReLU6()]
        self.layers = nn.Sequential(*widen, *each, *_normed(nn.Conv2d(inner, out, 1, bias=False)))

    def forward(self, x: Tensor) -> Tensor:
        """From shape (n, wide, height, width) to (n, out, height / stride, width / stride)."""
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    """MobileNetV2 (arXiv:1801.04381) with `width` times its channels, and a first convolution of stride 1."""

    def __init__(self, width: float = 1.0, classes: int = 10) -> None:
        super().__init__()
        wide, last = round(32 * width), round(1280 * max(width, 1.0))
        layers: list[nn.Module] = [*_normed(nn.Conv2d(3, wide, 3, 1, 1, bias=False)), nn.ReLU6()]
        for factor, channels, blocks, stride in STAGES:
            for i in range(blocks):
                out = round(channels * width)
                layers.append(Inverted(wide, out, factor, stride if i == 0 else 1))
                wide = out
        self.features = nn.Sequential(*layers, *_normed(nn.Conv2d(wide, last, 1, bias=False)), nn.ReLU6())
        self.classifier = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Any:
        """From images of shape (n, 3, height, width) to logits of shape (n, classes)."""
        return self.classifier(self.features(x).mean((2, 3)))


@dataclass(frozen=True)
class Images:
    """Images of shape (n, 3, 32, 32) and their classes, to train and to test on."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @staticmethod
    def read(train: Path, test: Path, most: tuple[int, int]) -> "Images":
        """Read two files of records, and draw at most so many images of each: they may be sorted by class."""
        return Images(_drawn(images(train), most[0]), _drawn(images(test), most[1]))


def resnet20(weights: Path) -> nn.Module:
    """ResNet-20 with the weights of a file; its shortcuts are convolutions."""
    model = ResNet()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()}, strict=False)
    for stage in (model.layer2, model.layer3):
        stage[0] = ConvolvedShortcut(stage[0])  # type: ignore[arg-type]
    return model.eval()


def trained(
    file: Path, build: Callable[[], nn.Module], training: Training,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
) -> nn.Module:  # fmt: skip
    """A network, trained briefly; its weights are kept in a file, from which they are read the next time."""
    torch.manual_seed(0)
    model = build()
    if file.is_file():
        model.load_state_dict(load_file(file))
        return model.eval()
    training.run(model, optimizer(model))
    save_file(model.state_dict(), file)
    return model.eval()


@torch.no_grad()
def macs(model: nn.Module) -> int:
    """Multiply-accumulates of an image, of convolutions and linear layers."""
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(EXAMPLE))
    return int(counter.get_total_flops()) // 2


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Share of images whose class has the largest logit."""
    model.eval()
    batches = zip(*(torch.split(part, 500) for part in data), strict=True)
    right = [(model(x).argmax(1) == y).sum() for x, y in batches]
    return int(sum(right)) / len(data[1])


def _drawn(data: tuple[Tensor, Tensor], most: int) -> tuple[Tensor, Tensor]:
    at = torch.randperm(len(data[1]), generator=torch.Generator().manual_seed(0))[:most]
    return data[0][at], data[1][at]


def _normed(layer: nn.Conv2d) -> tuple[nn.Module, nn.Module]:
    return layer, nn.BatchNorm2d(layer.out_channels)
