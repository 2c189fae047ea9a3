"""Models of transformers: any model type, for any task, from a configuration that is made small."""

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Generator, Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig

from tests.zoo.overrides import ARCHITECTURES, FIELDS, INPUTS, merged
from tests.zoo.refill import refill, seed_of
from tests.zoo.shrink import VOCABULARY, shrunk

AUTO = {
    "clm": "AutoModelForCausalLM", "enc": "AutoModelForSequenceClassification", "s2s": "AutoModelForSeq2SeqLM",
    "img": "AutoModelForImageClassification", "aud": "AutoModelForAudioClassification",
    "seg": "AutoModelForSemanticSegmentation", "depth": "AutoModelForDepthEstimation", "dual": "AutoModel",
    "base": "AutoModel",
}  # fmt: skip
CLASSIFIES = ("enc", "img", "aud")
LABELS = 10
LENGTH = 16  # of a text, in tokens
SAMPLES = 4000  # of a sound
SIDE = 64  # of an image whose size the configuration leaves open


def build(task: str, model_type: str, unique: bool = True) -> nn.Module:
    """The model; see `zoo.get`."""
    name = f"hf/{task}/{model_type}"
    made = config(task, model_type)
    torch.manual_seed(seed_of(name))
    model: nn.Module = getattr(transformers, AUTO[task]).from_config(made).float().eval()
    model.requires_grad_(True)
    return refill(model, seed_of(name, 1)) if unique else model


def config(task: str, model_type: str) -> PreTrainedConfig:
    """The small configuration of a model type."""
    kind = CONFIG_MAPPING[model_type]
    fields = merged(shrunk(kind()), FIELDS.get(model_type, {}))
    fields = merged(fields, FIELDS.get((task, model_type), {}))
    if task in CLASSIFIES:
        fields["num_labels"] = LABELS
    made: PreTrainedConfig = kind(**fields)
    if model_type in ARCHITECTURES:
        made.architectures = [ARCHITECTURES[model_type]]
    for part in _parts(made):
        if hasattr(part, "use_cache"):
            part.use_cache = False
    return made


def inputs(task: str, model_type: str, batch: int = 2, seed: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Random inputs; see `zoo.get`."""
    made = config(task, model_type)
    generator = torch.Generator().manual_seed(seed_of(f"{task}/{model_type}", 7 + seed))
    own = INPUTS.get((task, model_type))
    return (), own(made, batch, generator) if own else _of_task(task, model_type, made, batch, generator)


def _of_task(task: str, model_type: str, made: PreTrainedConfig, batch: int, generator: Generator) -> dict[str, Tensor]:
    """What the models of a task usually take."""
    reads, hears = _senses(task, model_type)
    if hears:
        return {"input_values": torch.randn(batch, SAMPLES, generator=generator)}
    found = {"input_ids": _tokens(batch, LENGTH, generator)} if reads else {}
    if task == "enc" and model_type != "xmod":
        found["attention_mask"] = torch.ones(batch, LENGTH, dtype=torch.long)
    if task == "s2s":
        found["decoder_input_ids"] = _tokens(batch, LENGTH // 2, generator)
    if task == "dual" or not reads:
        found["pixel_values"] = torch.randn(batch, _channels(task, made), *_image_size(made), generator=generator)
    return found


def _senses(task: str, model_type: str) -> tuple[bool, bool]:
    """Does the model read a text, does it hear a sound?"""
    if task == "base":
        reads = "text" in model_type or model_type in ("distilbert", "dpr")
        return reads, model_type in ("hubert", "wav2vec2", "wavlm")
    return task in ("clm", "enc", "s2s", "dual"), task == "aud"


def _tokens(batch: int, length: int, generator: Generator) -> Tensor:
    """Tokens of a text, none of them special."""
    return torch.randint(8, VOCABULARY, (batch, length), generator=generator)


def _image_size(made: PreTrainedConfig) -> tuple[int, ...]:
    sizes = (getattr(part, "image_size", None) for part in _parts(made))
    size = next((size for size in sizes if size is not None), SIDE)
    return (size, size) if isinstance(size, int) else tuple(size)


def _channels(task: str, made: PreTrainedConfig) -> int:
    numbers = (getattr(part, "num_channels", None) for part in _parts(made) if task in ("img", "seg", "depth"))
    return next((number for number in numbers if isinstance(number, int)), 3)


def _parts(made: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A configuration and those inside it."""
    yield made
    for value in list(vars(made).values()):
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)
