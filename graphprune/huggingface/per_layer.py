"""Decoders and encoders whose layers differ in width, described by transformers' `per_layer_config`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Hashable
from contextlib import suppress
from functools import lru_cache
from string import Template
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from graphprune.errors import ExportError, because
from graphprune.huggingface.config_widths import fit
from graphprune.huggingface.meta_models import (
    PER_LAYER,
    Shapes,
    as_text,
    auto_class,
    auto_classes,
    describe,
    flat,
    from_table,
    is_own,
    on_meta,
    stock_class,
    weightless,
)
from graphprune.support.packages import transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

FILE = "modeling_per_layer.py"

_CODE = Template('''\
"""Models of transformers whose layers have widths of their own, `config.per_layer_config[i]`. Written by graphprune."""

import inspect

$imports


def rebuild_layers(layers, config):
    for index, wide in enumerate(layers):
        own = config.per_layer_config[index]
        takes_index = "layer_idx" in inspect.signature(type(wide).__init__).parameters
        layer = type(wide)(own, layer_idx=index) if takes_index else type(wide)(own)
        for module in layer.modules():
            if getattr(module, "config", None) is own:
                module.config = config  # what is not a width, as the kind of attention, is set there
        layers[index] = layer
''')

_CLASS = Template("""

class $name($stock):
    def __init__(self, config):
        super().__init__(config)
        rebuild_layers(self.get_submodule("$layers"), config)
        self.post_init()
""")


def is_per_layer(config: PreTrainedConfig) -> bool:
    """Whether the config has a width for each layer."""
    return bool(getattr(config, "is_heterogeneous", False))


def code(config: PreTrainedConfig) -> str:
    """Text of the Python file with which transformers loads such a model, given trust_remote_code."""
    classes = {kind.__name__: layers for kind, layers in _classes(config).values()}
    parts = [_CLASS.substitute(name=PER_LAYER + name, stock=name, layers=layers) for name, layers in classes.items()]
    kinds: set[type] = {kind for kind, _ in _classes(config).values()} | set(_own_config(config))
    return _CODE.substitute(imports="\n".join(sorted(map(_imported, kinds)))) + "".join(parts)


def _own_config(config: PreTrainedConfig) -> list[type]:
    """The class of the config if no auto class knows it."""
    return [] if type(config) in transformers.CONFIG_MAPPING.values() else [type(config)]


def _imported(kind: type) -> str:
    """The line that imports a class of transformers, of the user's own, or of code in the folder.

    Raises:
        ExportError: if the class is not in a module that can be imported.
    """
    if not is_own(kind):
        return f"from transformers import {kind.__name__}"
    if getattr(kind, "_auto_class", None):
        return f"from .{kind.__module__.rpartition('.')[2]} import {kind.__name__}"
    if kind.__module__ == "__main__" or kind.__qualname__ != kind.__name__:
        raise ExportError(
            f"the code file of a per-layer folder cannot import {kind.__qualname__} from {kind.__module__}; move the "
            "class into a module of its own, or use destination stock or free"
        )
    return f"from {kind.__module__} import {kind.__name__}"


def references(config: PreTrainedConfig) -> dict[str, str]:
    """The `auto_map` for that file: its class for every auto class that can load the folder."""
    module = FILE.removesuffix(".py")
    models = {auto: f"{PER_LAYER}{kind.__name__}" for auto, (kind, _) in _classes(config).items()}
    configs = dict(zip(("AutoConfig",), (kind.__name__ for kind in _own_config(config)), strict=False))
    return {auto: f"{module}.{name}" for auto, name in {**models, **configs}.items()}


def _classes(config: PreTrainedConfig) -> dict[str, tuple[type[PreTrainedModel], str]]:
    """The class that every auto class loads, with the name of its list of layers."""
    classes = {auto_class(config).__name__: (stock_class(config), _layers(config))}
    for auto, kind in auto_classes(config).items():
        alone = flat(config)
        alone.architectures = [kind.__name__]
        with suppress(ExportError):  # without the decoder, for instance, which has the layers
            classes[auto] = kind, _layers(alone)
    return classes


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a per-layer config; code in the folder of the config is not run.

    Raises:
        ExportError: if the class does not keep its layers in one list.
    """
    return model_class(stock_class(config))(config)


def build_on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a per-layer config, with its weights on the meta device."""
    return weightless(build, config)


def model_class(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The class that the code file of such a folder defines; every call returns the same one."""
    return _model_class(cast(Hashable, stock))


@lru_cache
def _model_class(stock: Any) -> type[PreTrainedModel]:

    class PerLayer(stock):  # type: ignore[misc]
        def __init__(self, config: PreTrainedConfig) -> None:
            super().__init__(config)
            _rebuild_layers(self, config)
            self.post_init()

    PerLayer.__name__ = PerLayer.__qualname__ = f"{PER_LAYER}{stock.__name__}"
    return PerLayer


def fit_layers(config: PreTrainedConfig, shapes: Shapes) -> PreTrainedConfig:
    """A copy of `config` that gives every layer its widths in `shapes`; a plain one if all layers are equal.

    `shapes` may omit names (of tied weights) and include buffers.

    Raises:
        ExportError: if no fields yield the widths of some layer, or the class cannot build layers one by one.
    """
    base = flat(config)
    prefix, known = _layers(base), describe(on_meta(base)).shapes
    shapes = {name: shape for name, shape in shapes.items() if name in known}
    tables = [_fit_layer(base, prefix, layer, shapes) for layer in range(_count(base))]
    differing = {key for table in tables for key in table if table[key] != tables[0][key]}
    _require_integers(base, tables, differing)
    widest = {key: max(table[key] or 0 for table in tables) for key in differing}
    fitted = from_table(type(base), {**tables[0], **widest})
    if not differing:
        return fitted
    fitted.allow_global_per_layer_attribute_access = True  # generation reads numbers of heads there
    fitted.per_layer_config = {i: {key: table[key] for key in sorted(differing)} for i, table in enumerate(tables)}
    _require_shapes(fitted, shapes)
    return fitted


def _fit_layer(base: PreTrainedConfig, prefix: str, layer: int, shapes: Shapes) -> dict[str, Any]:
    """The config, as plain values, of a model in which every layer has the widths of this one."""
    start = f"{prefix}.{layer}."
    own = {name.removeprefix(start): shape for name, shape in shapes.items() if name.startswith(start)}
    shared = {name: shape for name, shape in shapes.items() if not name.startswith(f"{prefix}.")}
    try:
        short = fit(_shortened(base), {**shared, **{f"{prefix}.0.{name}": shape for name, shape in own.items()}})
        table = {**_table(base), **_changes(_shortened(base), short)}
    except ExportError:  # layers differ in kind: fit the config with all of them, which is slower
        all_layers = {f"{prefix}.{i}.{name}": shape for i in range(_count(base)) for name, shape in own.items()}
        table = _table(fit(base, {**shared, **all_layers}))
    return table


def _changes(before: PreTrainedConfig, after: PreTrainedConfig) -> dict[str, Any]:
    old, new = _table(before), _table(after)
    return {key: value for key, value in new.items() if old.get(key) != value}


def _table(config: PreTrainedConfig) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(as_text(config))
    return table


def _shortened(base: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of the config with one layer: it has the same fields and is quicker to build."""
    count, table = _count(base), _table(base)
    table = {k: v[:1] if isinstance(v, list) and len(v) == count else v for k, v in table.items()}
    name: str = base.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    try:
        return from_table(type(base), {**table, name: 1})
    except (ValueError, TypeError) as fault:
        raise ExportError(f"{type(base).__name__} cannot have one layer{because(fault)}") from fault


def _require_integers(base: PreTrainedConfig, tables: list[dict[str, Any]], differing: set[str]) -> None:
    """Raise an ExportError if layers differ in fields that are not integers."""
    if fixed := sorted(key for key in differing if not all(isinstance(table[key], int | None) for table in tables)):
        raise ExportError(f"{type(base).__name__}.{fixed[0]} cannot differ from layer to layer; use destination free")


def _require_shapes(config: PreTrainedConfig, shapes: Shapes) -> None:
    built = describe(build_on_meta(config)).shapes
    for name, shape in shapes.items():
        if name in built and built[name] != shape:
            raise ExportError(
                f"{name} would have shape {built[name]} with a per-layer config, not {shape}; use destination free"
            )


def _count(config: PreTrainedConfig) -> int:
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(count, int):
        raise ExportError(
            f"{type(config).__name__} has no num_hidden_layers to identify its layers by; use destination free"
        )
    return count


def _layers(config: PreTrainedConfig) -> str:
    """The name of the one list of equal layers in the stock model.

    Raises:
        ExportError: if there is none, or more than one.
    """
    return _layers_in(on_meta(flat(config)), _count(config))


def _layers_in(model: nn.Module, count: int) -> str:
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    matching: list[str] = [
        n for n, layers in lists.items() if len(layers) == count and len(set(map(type, layers))) == 1
    ]
    if len(matching) != 1:
        raise ExportError(
            f"{type(model).__name__} has {len(matching)} lists of {count} equal modules, expected one with its layers: "
            "it cannot have per-layer widths; use destination stock or free"
        )
    return matching[0]


def _rebuild_layers(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """Replace each layer by one built from its own config."""
    layers = model.get_submodule(_layers_in(model, _count(config)))
    assert isinstance(layers, nn.ModuleList)
    for index, wide in enumerate(layers):
        own = config.per_layer_config[index]
        layer = _layer(type(wide), own, index)
        if layer.state_dict().keys() != wide.state_dict().keys():
            raise ExportError(
                f"a {type(wide).__name__} built alone has other parameters than layer {index}; "
                "use destination stock or free"
            )
        for module in layer.modules():
            if getattr(module, "config", None) is own:
                vars(module)["config"] = config  # settings that are not widths, such as the kind of attention
        layers[index] = layer


def _layer(kind: Any, config: PreTrainedConfig, index: int) -> nn.Module:
    signature = inspect.signature(kind.__init__).parameters
    further = [p for p in list(signature.values())[2:] if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "layer_idx"]
    if needed := [p.name for p in further if p.default is p.empty]:
        raise ExportError(f"{kind.__name__} also needs {needed[0]!r} to be built; use destination stock or free")
    layer: nn.Module = kind(config, layer_idx=index) if "layer_idx" in signature else kind(config)
    return layer
