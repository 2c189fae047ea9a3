"""Example inputs for a transformers model, chosen by the parameters of its forward."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import LoadError
from graphprune.huggingface import model_folder

BATCH = 2  # a size of 1 would be taken for a constant
SEQUENCE = 8
SIDE = 224  # of an image, where no configuration has a size
SEED = 0


def example_inputs(folder: Path, model: Any) -> dict[str, Tensor]:
    """Random inputs of the kind of the model's main input, by name.

    Raises:
        LoadError: if its main input is neither text nor an image nor a spectrogram.
    """
    generator = torch.Generator().manual_seed(SEED)
    accepted = inspect.signature(model.forward).parameters
    main = model.main_input_name
    if main == "input_ids":
        return {**_text(model.config, accepted, generator), **_compared_image(folder, model, accepted, generator)}
    if main == "pixel_values":
        return {main: _image(folder, model.config, generator)}
    if main == "input_features" and hasattr(model.config, "num_mel_bins"):
        return {main: _sound(model.config, generator), **_decoded(model.config, accepted, generator)}
    raise LoadError(
        f"{folder}: {type(model).__name__} takes {main!r}, expected input_ids, pixel_values or input_features; "
        "build the model and pass it to graphprune.trace with inputs of your own"
    )


def _text(config: Any, accepted: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    vocabulary = config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (BATCH, SEQUENCE), generator=generator)
    inputs = {"input_ids": ids}
    if "attention_mask" in accepted:
        inputs["attention_mask"] = torch.ones_like(ids)
    return {**inputs, **_decoded(config, accepted, generator)}


def _compared_image(
    folder: Path, model: Any, accepted: Mapping[str, Any], generator: torch.Generator
) -> dict[str, Tensor]:
    """The image that a model without generation, which compares texts and images, takes with a text."""
    part = getattr(model.config, "vision_config", None)
    if part is None or "pixel_values" not in accepted or model.can_generate():
        return {}
    return {"pixel_values": _image(folder, part, generator)}


def _decoded(config: Any, accepted: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Tokens of the decoder of an encoder-decoder."""
    if not config.is_encoder_decoder or "decoder_input_ids" not in accepted:
        return {}
    vocabulary = config.get_text_config().vocab_size
    return {"decoder_input_ids": torch.randint(0, vocabulary, (BATCH, SEQUENCE), generator=generator)}


def _sound(config: Any, generator: torch.Generator) -> Tensor:
    """A spectrogram of as many frames as the encoder has positions, which its first convolutions halve."""
    frames = 2 * getattr(config, "max_source_positions", SEQUENCE)
    return torch.randn(BATCH, config.num_mel_bins, frames, generator=generator)


def _image(folder: Path, config: Any, generator: torch.Generator) -> Tensor:
    size = getattr(config, "image_size", None) or _preprocessed(folder)
    try:
        height, width = _size(size)
    except (TypeError, ValueError, IndexError) as fault:
        raise LoadError(f"{folder}: the image size is {size!r}, expected a number or height and width") from fault
    return torch.randn(BATCH, getattr(config, "num_channels", 3), height, width, generator=generator)


def _preprocessed(folder: Path) -> Any:
    """Image size in the settings of the folder's preprocessor."""
    path = folder / "preprocessor_config.json"
    settings = model_folder.read_json(path) if path.is_file() else {}
    return settings.get("crop_size") or settings.get("size") or SIDE


def _size(setting: Any) -> tuple[int, int]:
    """Height and width, from any form that configurations use."""
    if isinstance(setting, Mapping):
        side = setting.get("shortest_edge", SIDE)
        return int(setting.get("height", side)), int(setting.get("width", side))
    if isinstance(setting, list | tuple):
        return int(setting[0]), int(setting[-1])
    return int(setting), int(setting)
