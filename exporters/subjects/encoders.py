"""Models without a cache: text encoders, classifiers, vision models, and encoder-decoders."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphprune.errors import ExportError
from graphprune.exporters.subjects.subject import BATCH, DECODER_SEQUENCE, SEQUENCE, Alias, Subject
from graphprune.huggingface import model_folder
from graphprune.huggingface.meta_models import is_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BATCH, _SEQUENCE, _SIDE = 2, 6, 224
_TEXT = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids")


class NamedOutputs(Alias):
    """A model that takes its inputs as a list and returns its output tensors as a tuple."""

    def __init__(self, model: PreTrainedModel, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__(model)
        self.inputs, self.outputs = inputs, outputs

    def forward(self, args: list[Tensor]) -> tuple[Tensor, ...]:
        """Output tensors, in the order of `outputs`."""
        outputs = self.model_itself(**dict(zip(self.inputs, args, strict=True)), return_dict=True)
        return tuple(outputs[name] for name in self.outputs)


def encoder_subject(model: nn.Module, folder: Path) -> Subject:
    """A model without a cache, with example inputs for the arguments of its forward.

    Raises:
        ExportError: if its inputs are neither text nor an image.
    """
    if not is_model(model):
        raise ExportError(f"{type(model).__name__} is not a transformers model; export its program instead")
    model.config.use_cache = False
    inputs = _example_inputs(model, folder)
    with torch.no_grad():
        result = model(**inputs, return_dict=True)
    outputs = tuple(name for name, value in result.items() if isinstance(value, Tensor))
    lengths = {**dict.fromkeys(_TEXT, SEQUENCE), "decoder_input_ids": DECODER_SEQUENCE}
    dynamic = {name: {0: BATCH} | ({1: lengths[name]} if name in lengths else {}) for name in inputs}
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", 0)
    return Subject(
        NamedOutputs(model, tuple(inputs), outputs), (list(inputs.values()),), tuple(inputs), outputs,
        (list(dynamic.values()),), vocabulary, model.dtype,
    )  # fmt: skip


def _example_inputs(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    signature = inspect.signature(model.forward).parameters
    if model.main_input_name not in ("input_ids", "pixel_values"):
        raise ExportError(
            f"{type(model).__name__} takes {model.main_input_name!r}; models that take text (input_ids) or images "
            "(pixel_values) can be exported"
        )
    if model.main_input_name == "pixel_values":
        pixels = torch.randn(_BATCH, *_image(model, folder), generator=torch.Generator().manual_seed(0))
        return {"pixel_values": pixels.to(model.dtype)}
    shape = (_BATCH, _SEQUENCE)
    ids = torch.arange(_BATCH * _SEQUENCE).view(shape) % model.config.get_text_config().vocab_size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    inputs |= {"decoder_input_ids": ids[:, 1:].contiguous()} if model.config.is_encoder_decoder else {}
    return {name: inputs[name] for name in _TEXT if name in signature and name in inputs}


def _image(model: PreTrainedModel, folder: Path) -> tuple[int, int, int]:
    """Channels, height and width of images, from the config or the folder's preprocessor settings."""
    path = folder / "preprocessor_config.json"
    settings = model_folder.read_json(path) if path.is_file() else {}
    size: Any = getattr(model.config, "image_size", None) or settings.get("crop_size") or settings.get("size") or _SIDE
    if isinstance(size, dict):
        side = size.get("shortest_edge", _SIDE)
        size = (size.get("height", side), size.get("width", side))
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    return int(getattr(model.config, "num_channels", 3)), int(height), int(width)
