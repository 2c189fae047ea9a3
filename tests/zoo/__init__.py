"""Architectures that nobody wrote for us: transformers' model types, timm's families and torchvision's models.

Every model is tiny or the smallest of its kind, randomly initialised from a seed, and needs no download::

    build, inputs = zoo.get("hf/clm/llama")
    model = build()                      # float32, in evaluation mode, every parameter of distinct values
    args, kwargs = inputs(batch=2)       # dimension 0 of every tensor is the batch

A name is ``hf/TASK/MODEL_TYPE``, ``timm/MODULE/ARCHITECTURE`` or ``tv/MODEL``. Those of ``hf`` need only transformers.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from tests.zoo import huggingface, vision
from tests.zoo.torchvision_operators import import_torchvision

if find_spec("torchvision"):
    import_torchvision()  # transformers imports it where it is installed, and it may need help

NAMES: tuple[str, ...] = tuple(json.loads((Path(__file__).parent / "names.json").read_text()))
PACKAGES = {"hf": (), "timm": ("timm", "torchvision"), "tv": ("torchvision",)}


class Build(Protocol):
    """Makes the model; without `unique` its parameters stay as its own initialisation left them."""

    def __call__(self, unique: bool = True) -> nn.Module: ...


class Inputs(Protocol):
    """Makes random inputs, other ones for another seed."""

    def __call__(self, batch: int = 2, seed: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]]: ...


def get(name: str) -> tuple[Build, Inputs]:
    """The functions that build a model and its inputs.

    Raises:
        KeyError: if there is no such name.
    """
    kind, *rest = name.split("/")
    if name not in NAMES:
        raise KeyError(f"the zoo has no {name!r}; tests/zoo/names.json lists its names")
    if kind == "hf":
        task, model_type = rest
        return partial(huggingface.build, task, model_type), partial(huggingface.inputs, task, model_type)
    if kind == "timm":
        return partial(vision.build_timm, rest[1]), partial(vision.inputs_timm, rest[1])
    return partial(vision.build_torchvision, rest[0]), partial(vision.inputs_torchvision, rest[0])


def missing(name: str) -> list[str]:
    """The packages that a model needs and that are not installed."""
    return [package for package in PACKAGES[name.split("/")[0]] if find_spec(package) is None]


def family(name: str) -> str:
    """``hf/TASK``, ``timm`` or ``tv``."""
    parts = name.split("/")
    return "/".join(parts[:2]) if parts[0] == "hf" else parts[0]


def tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors in whatever a model returns, in order."""
    return list(_walk(output))


def _walk(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield from [value] if value.is_floating_point() else []
        return
    for part in _parts(value):
        yield from _walk(part)


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from (v for v in vars(value).values() if isinstance(v, Tensor | list | tuple | dict))
