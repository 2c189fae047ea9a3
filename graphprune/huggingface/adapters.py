"""Adapters of PEFT that are attached to the layers of a model: their ranks, and the model without them."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

BASE_LAYER = ".base_layer."  # in the names of parameters of a layer with adapters
RANK = "it is the rank of an adapter, which the configuration of the adapter sets"

Shapes = Mapping[str, tuple[int, ...]]


def ranks_of(module: nn.Module) -> dict[str, dict[int, str]]:
    """For every parameter of an adapter the dimensions that are its rank, with the reason why they cannot be cut."""
    return {
        name: {dim: RANK for dim, size in enumerate(parameter.shape) if size == rank}
        for name, parameter, rank in _parameters(module)
    }


def _parameters(module: nn.Module) -> Iterator[tuple[str, Tensor, int]]:
    """Name and value of every parameter of an adapter, and the rank of the adapter."""
    for path, layer in module.named_modules():
        tables, ranks = _declared(layer), vars(layer).get("r")
        if not tables or not isinstance(ranks, Mapping):
            continue
        for table in (t for t in tables if isinstance(layer._modules.get(t), nn.Module)):
            for name, parameter in layer._modules[table].named_parameters():
                rank = ranks.get(name.partition(".")[0])
                if isinstance(rank, int):
                    yield f"{path}.{table}.{name}".lstrip("."), parameter, rank


def _declared(layer: nn.Module) -> tuple[str, ...]:
    """Names of the tables of adapters that a class of the layer declares."""
    declared = (vars(kind).get("adapter_layer_names") for kind in type(layer).__mro__)
    return next((names for names in declared if isinstance(names, tuple)), ())


def without_adapters(module: nn.Module, shapes: Shapes) -> tuple[Any, Shapes]:
    """The model to which adapters are attached, and the shapes of its own parameters by the names in its class.

    Returns the module itself and all shapes where there are no adapters.
    """
    own = {name for name, _, _ in _parameters(module)}
    if not own or not callable(getattr(module, "get_base_model", None)):
        return module, shapes
    base = module.get_base_model()  # type: ignore[operator]
    prefix = next((f"{path}." for path, part in module.named_modules() if part is base and path), "")
    stored = {name: shape for name, shape in shapes.items() if name not in own and name.startswith(prefix)}
    return base, {name.removeprefix(prefix).replace(BASE_LAYER, "."): shape for name, shape in stored.items()}
