"""Stock transformers models built from a config on the meta device, without memory for their weights."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeGuard, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import nn

from graphprune.errors import ExportError, PackageError
from graphprune.support.packages import transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Shapes = Mapping[str, tuple[int, ...]]

#: Classes outside transformers, of models that were traced, and their names; a class defined again gets a new one.
_OWN_NAMES: WeakKeyDictionary[type, str] = WeakKeyDictionary()
_OWN_CLASSES: WeakValueDictionary[str, type] = WeakValueDictionary()
_SERIAL = count()
#: Start of the names of classes whose layers have widths of their own.
PER_LAYER = "PerLayer"
#: Attributes that follow from widths and change the results of a reloaded model.
_HEAD_SIZE = re.compile(r"^(?!all_)(.*_)?head_(dim|size)$")


@dataclass(frozen=True)
class ModelSummary:
    """Summary of a model built from a config: shapes, and the numbers that it computes with.

    `shapes` has every name of a shared parameter. `transient` names the buffers that are not saved, `layers` the
    module lists.
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
    """The transformers class that the config names.

    Raises:
        ExportError: if it names none, or one that transformers does not have.
    """
    names = config.architectures or []
    if known := [kind for kind in map(known_class, names) if kind is not None]:
        return known[0]
    problem = f"names the class {names[0]!r}, which transformers does not have" if names else "names no class"
    raise ExportError(
        f"config.json {problem} in 'architectures', which a stock folder needs; use destination free, or add the name "
        "of a transformers class"
    )


def class_name(kind: type[PreTrainedModel]) -> str:
    """The name by which `known_class` returns this class, which may be one of the user's own."""
    name = kind.__name__.removeprefix(PER_LAYER)
    if getattr(transformers, name, None) is kind or (kind.__name__ != name and hasattr(transformers, name)):
        return name
    if kind not in _OWN_NAMES:
        _OWN_NAMES[kind] = f"{kind.__module__}.{kind.__qualname__}#{next(_SERIAL)}"
        _OWN_CLASSES[_OWN_NAMES[kind]] = kind
    return _OWN_NAMES[kind]


def is_own(kind: type) -> bool:
    """Whether a class is not one of transformers."""
    return getattr(transformers, kind.__name__, None) is not kind


def known_class(name: str) -> type[PreTrainedModel] | None:
    """The class of transformers with this name, or the one from which a class of per-layer widths is derived.

    Names given by `class_name` lead back to their classes.
    """
    if name in _OWN_CLASSES:
        return _OWN_CLASSES[name]
    candidate = getattr(transformers, str(name).removeprefix(PER_LAYER), None)
    return candidate if isinstance(candidate, type) and issubclass(candidate, transformers.PreTrainedModel) else None


def auto_class(config: PreTrainedConfig) -> Any:
    """The auto class, such as AutoModelForCausalLM, that loads models of this config's class."""
    generic = ("AutoModel", "AutoModelForPreTraining")  # these list nearly every class
    names = sorted(_auto_names(config), key=lambda name: (name in generic, name))
    return getattr(transformers, names[0]) if names else stock_class(config)


def auto_classes(config: PreTrainedConfig) -> dict[str, type[PreTrainedModel]]:
    """The class that every auto class loads from a folder with the weights of this config's class.

    These are the class itself, and for AutoModel the one without a head.
    """
    stock = stock_class(config)
    mapping: Any = transformers.models.auto.modeling_auto.AutoModel._model_mapping
    (body, *_) = _all(mapping.get(type(config), stock))
    return {"AutoModel": body, **dict.fromkeys(_auto_names(config), stock)}


def _auto_names(config: PreTrainedConfig) -> list[str]:
    """Names of the auto classes that list the class of this config."""
    stock, module = stock_class(config), transformers.models.auto.modeling_auto
    names = [name for name in vars(module) if name.startswith("AutoModel") and hasattr(transformers, name)]
    mappings = {name: getattr(getattr(module, name), "_model_mapping", None) for name in names}
    return [
        name for name, known in mappings.items() if known is not None and stock in _all(known.get(type(config), ()))
    ]


def _all(classes: Any) -> tuple[Any, ...]:
    return tuple(classes) if isinstance(classes, list | tuple) else (classes,)


def on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """The stock model of a config, with its weights on the meta device."""
    return weightless(stock_class(config), config)


def weightless(kind: Callable[[PreTrainedConfig], PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The model that `kind` builds from a config, with its weights on the meta device, and tied as configured."""
    with torch.device("meta"), transformers.initialization.no_init_weights():
        model = kind(config)
    model.tie_weights()
    return model


def flat(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy without per-layer widths and without the code file that they need."""
    copied = copy.deepcopy(config)
    copied.per_layer_config = None
    for name in ("auto_map", "allow_global_per_layer_attribute_access"):
        copied.__dict__.pop(name, None)
    return copied


def subconfigs(config: PreTrainedConfig, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The config itself and those that it holds, such as that of a text model, with their paths."""
    yield path, config
    for name, value in vars(config).items():
        if is_config(value):
            yield from subconfigs(value, (*path, name))


def as_text(config: PreTrainedConfig) -> str:
    """The whole config as JSON text; equal texts give equal models."""
    return json.dumps(config.to_dict(), sort_keys=True, default=str)


def from_table(kind: type[PreTrainedConfig], table: Mapping[str, Any]) -> PreTrainedConfig:
    """A config with these values, validated by transformers."""
    return kind.from_dict(json.loads(json.dumps(table, default=str)))


def summarize(config: PreTrainedConfig) -> ModelSummary:
    """The summary of the model of a config.

    Raises:
        ExportError: if transformers rejects the config.
    """
    summary = try_build(type(config), as_text(config))
    if isinstance(summary, str):
        raise ExportError(f"transformers cannot build a model from config.json: {summary}; repair the source folder")
    return summary


def try_build(kind: type[PreTrainedConfig], text: str) -> ModelSummary | str:
    """The summary of the model of a config given as JSON text, or the reason why transformers rejects the config."""
    return _try_build(cast(Hashable, kind), text)


@lru_cache(maxsize=512)
def _try_build(kind: Any, text: str) -> ModelSummary | str:
    try:
        model = on_meta(from_table(kind, json.loads(text)))
    except (ExportError, PackageError):
        raise
    except Exception as fault:  # a class may validate its config with any exception
        return reason(fault)
    return describe(model)


def describe(model: nn.Module) -> ModelSummary:
    """The summary of a model."""
    saved = model.state_dict(keep_vars=True)
    buffers = dict(model.named_buffers(remove_duplicate=False))
    shapes = {name: tuple(tensor.shape) for name, tensor in {**buffers, **saved}.items()}
    return ModelSummary(
        shapes=MappingProxyType(shapes),
        transient=frozenset(buffers.keys() - saved.keys()),
        numbers=MappingProxyType(dict(_numbers(model))),
        layers=tuple(name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)),
    )


def _numbers(model: nn.Module) -> Iterator[tuple[str, float]]:
    """Numbers that modules compute with: every float attribute, such as the attention scale, and the head dim."""
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            head = isinstance(value, int) and _HEAD_SIZE.search(name)
            if head or isinstance(value, float):
                yield f"{prefix}.{name}".lstrip("."), float(value)


def head_sizes(config: PreTrainedConfig) -> dict[str, int]:
    """Sizes of the attention heads of the stock model, by the names of their modules."""
    numbers = summarize(config).numbers
    split = ((name.rpartition("."), number) for name, number in numbers.items())
    return {module: int(number) for (module, _, field), number in split if _HEAD_SIZE.search(field)}


def reason(fault: Exception) -> str:
    """The last line of an error, which holds the reason in nested validation errors."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[-1] if lines else type(fault).__name__
