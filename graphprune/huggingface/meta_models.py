"""Stock model classes built without memory, to see what a config makes of them."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import nn

from graphprune.errors import ExportError, PackageError
from graphprune.support.packages import transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Shapes = Mapping[str, tuple[int, ...]]

#: Numbers of a module that are no widths but follow from them: a reloaded model would compute something else.
_HEAD_SIZE = re.compile(r"^(?!all_)(.*_)?head_(dim|size)$")


@dataclass(frozen=True)
class Built:
    """What matters of a model that was built from a config: shapes, and the numbers it computes with.

    `shapes` has every name of a shared parameter; `transient` those buffers that are not saved.
    """

    shapes: Shapes
    transient: frozenset[str]
    numbers: Mapping[str, float]
    layers: tuple[str, ...]


def is_config(value: object) -> TypeGuard[PreTrainedConfig]:
    """Whether this is a configuration of transformers, which is not imported to answer."""
    return "transformers.configuration_utils" in sys.modules and isinstance(value, transformers.PreTrainedConfig)


def is_model(value: object) -> TypeGuard[PreTrainedModel]:
    """Whether this is a model of transformers, which is not imported to answer."""
    return "transformers.modeling_utils" in sys.modules and isinstance(value, transformers.PreTrainedModel)


def stock_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of transformers that the config names.

    Raises:
        ExportError: if it names none, or one that transformers does not have.
    """
    names = config.architectures or []
    found = getattr(transformers, names[0], None) if names else None
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    said = f"names the class {names[0]!r}, which transformers does not have" if names else "names no class"
    raise ExportError(
        f"config.json {said} in 'architectures'; a stock folder needs one. "
        "Use destination free, or name a class of transformers there"
    )


def auto_class(config: PreTrainedConfig) -> Any:
    """The class such as AutoModelForCausalLM that loads models of this config's class."""
    stock = stock_class(config)
    vague = ("AutoModel", "AutoModelForPreTraining")  # nearly every class is among these too
    for name in sorted(vars(transformers.models.auto.modeling_auto), key=lambda name: (name in vague, name)):
        mapping = getattr(getattr(transformers.models.auto.modeling_auto, name), "_model_mapping", None)
        if name.startswith("AutoModel") and mapping is not None and stock in _all(mapping.get(type(config), ())):
            return getattr(transformers, name, stock)
    return stock


def _all(found: Any) -> tuple[Any, ...]:
    return tuple(found) if isinstance(found, list | tuple) else (found,)


def on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """The stock model of a config, its weights without memory."""
    return weightless(stock_class(config), config)


def weightless(kind: Callable[[PreTrainedConfig], PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """What `kind` makes of a config, its weights without memory, but shared where they are to be."""
    with torch.device("meta"), transformers.initialization.no_init_weights():
        model = kind(config)
    model.tie_weights()
    return model


def flat(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy without widths of single layers, and without the code file that goes with them."""
    copied = copy.deepcopy(config)
    copied.per_layer_config = None
    for name in ("auto_map", "allow_global_per_layer_attribute_access"):
        copied.__dict__.pop(name, None)
    return copied


def as_text(config: PreTrainedConfig) -> str:
    """All of a config; equal texts make equal models."""
    return json.dumps(config.to_dict(), sort_keys=True, default=str)


def from_table(kind: type[PreTrainedConfig], table: Mapping[str, Any]) -> PreTrainedConfig:
    """A config with these values, checked as transformers checks it."""
    return kind.from_dict(json.loads(json.dumps(table, default=str)))


def built(kind: type[PreTrainedConfig], text: str) -> Built | str:
    """The model of a config given as text, or the words with which transformers refuses it."""
    return _built(cast(Hashable, kind), text)


@lru_cache(maxsize=512)
def _built(kind: Any, text: str) -> Built | str:
    try:
        model = on_meta(from_table(kind, json.loads(text)))
    except (ExportError, PackageError):
        raise
    except Exception as refusal:  # any class may check its config in any way, and by any exception
        return _words(refusal)
    return describe(model)


def describe(model: nn.Module) -> Built:
    """The shapes and numbers of a model."""
    saved = model.state_dict(keep_vars=True)
    buffers = dict(model.named_buffers(remove_duplicate=False))
    shapes = {name: tuple(tensor.shape) for name, tensor in {**buffers, **saved}.items()}
    return Built(
        shapes=MappingProxyType(shapes),
        transient=frozenset(buffers.keys() - saved.keys()),
        numbers=MappingProxyType(dict(_numbers(model))),
        layers=tuple(name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)),
    )


def _numbers(model: nn.Module) -> Iterator[tuple[str, float]]:
    """What modules compute with: every float, such as the scale of attention, and the size of heads."""
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            head = isinstance(value, int) and _HEAD_SIZE.search(name)
            if head or isinstance(value, float):
                yield f"{prefix}.{name}".lstrip("."), float(value)


def _words(refusal: Exception) -> str:
    """The last line of what was said, which holds the reason in nested validation errors."""
    lines = [line.strip() for line in str(refusal).splitlines() if line.strip()]
    return lines[-1] if lines else type(refusal).__name__
