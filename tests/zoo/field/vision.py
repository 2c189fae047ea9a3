"""Classifiers with auxiliary heads, segmentation and text recognition."""

from importlib import import_module
from typing import Any

from torch import Tensor, nn

from tests.zoo.field.case import FieldModel, Inputs, normal
from tests.zoo.torchvision_operators import import_torchvision

SMP = ("segmentation_models_pytorch", "timm", "torchvision")


def _segmentation(name: str, encoder: str) -> nn.Module:
    import_torchvision()
    library: Any = import_module("segmentation_models_pytorch")
    model: nn.Module = getattr(library, name)(encoder, encoder_weights=None, classes=3)
    return model


def _googlenet() -> nn.Module:
    import_torchvision()
    models: Any = import_module("torchvision.models")
    model: nn.Module = models.googlenet(weights=None, aux_logits=True, init_weights=False, num_classes=5)
    return model


class _Recurrent(nn.Module):
    """A bidirectional LSTM and a linear layer over all its steps."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(inputs, hidden, bidirectional=True)
        self.embedding = nn.Linear(2 * hidden, outputs)

    def forward(self, input: Tensor) -> Tensor:
        recurrent, _ = self.rnn(input)
        length, batch, width = recurrent.size()
        output: Tensor = self.embedding(recurrent.view(length * batch, width))
        return output.view(length, batch, -1)


class TextRecognizer(nn.Module):
    """A CRNN (arXiv:1507.05717): convolutions to height 1, recurrent layers over the width."""

    def __init__(self, characters: int = 11, hidden: int = 32) -> None:
        super().__init__()
        narrow = nn.MaxPool2d((2, 2), (2, 1), (0, 1))
        self.cnn = nn.Sequential(
            *self._block(1, 16), nn.MaxPool2d(2, 2), *self._block(16, 32), nn.MaxPool2d(2, 2),
            *self._block(32, 64, norm=True), *self._block(64, 64), narrow,
            *self._block(64, 96, norm=True), *self._block(96, 96), narrow, *self._block(96, 96, 2, 0, norm=True),
        )  # fmt: skip
        self.rnn = nn.Sequential(_Recurrent(96, hidden, hidden), _Recurrent(hidden, hidden, characters))

    @staticmethod
    def _block(inputs: int, outputs: int, kernel: int = 3, padding: int = 1, norm: bool = False) -> list[nn.Module]:
        norms = [nn.BatchNorm2d(outputs)] if norm else []
        return [nn.Conv2d(inputs, outputs, kernel, 1, padding), *norms, nn.ReLU(inplace=True)]

    def forward(self, input: Tensor) -> Tensor:
        features = self.cnn(input)
        _, _, height, _ = features.size()
        assert height == 1, "the images are too high"
        output: Tensor = self.rnn(features.squeeze(2).permute(2, 0, 1))
        return output


def _images(channels: int, height: int, width: int, seed: int) -> Inputs:
    return (normal(2, channels, height, width, seed=seed),), {}


MODELS = {
    "segmentation-models-pytorch/unet": FieldModel(
        lambda: _segmentation("Unet", "resnet18"), lambda seed: _images(3, 64, 64, seed), SMP
    ),
    "segmentation-models-pytorch/segformer": FieldModel(
        lambda: _segmentation("Segformer", "mit_b0"), lambda seed: _images(3, 64, 64, seed), SMP
    ),
    "torchvision/googlenet with auxiliary heads": FieldModel(
        _googlenet, lambda seed: _images(3, 96, 96, seed), ("torchvision",)
    ),
    "crnn": FieldModel(TextRecognizer, lambda seed: _images(1, 32, 64, seed)),
}
