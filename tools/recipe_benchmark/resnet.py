"""The residual network for small images of He et al. (arXiv:1512.03385, section 4.2), and files of such images."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two convolutions beside a shortcut without weights: strided, with channels of zeros on both sides (option A)."""

    def __init__(self, wide: int, out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.more = stride, (out - wide) // 2
        self.conv1, self.bn1 = nn.Conv2d(wide, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """From images of shape (n, wide, height, width) to (n, out, height / stride, width / stride)."""
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return relu(x + y)


class ResNet(nn.Module):
    """Three stages of `blocks` blocks: 16, 32 and 64 channels; three blocks a stage make ResNet-20."""

    def __init__(self, blocks: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*[Block(wide if i == 0 else out, out, stride if i == 0 else 1) for i in range(blocks)])
            for wide, out, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Any:
        """From images of shape (n, 3, height, width) to scores of shape (n, classes)."""
        x = self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def images(path: Path, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Normalised images, shape (n, 3, height, width), and their classes, of a file of records: a byte for the class,
    two for the length (little-endian), and so many of JPEG; all of them, or the first `most`."""
    from PIL import Image  # which nothing else here needs

    raw, at = path.read_bytes(), 0
    pixels, classes = list[Any](), list[int]()
    while at < len(raw) and (most is None or len(classes) < most):
        label, size = struct.unpack_from("<BH", raw, at)
        pixels.append(np.array(Image.open(io.BytesIO(raw[at + 3 : at + 3 + size])).convert("RGB")))
        classes.append(label)
        at += 3 + size
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return (x - mean) / deviation, torch.tensor(classes)
