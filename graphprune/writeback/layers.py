"""Layers that hold weights: new tensors for them, and the sizes that they say of themselves."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from graphprune.errors import WriteBackError
from graphprune.support.undo import Undo

#: Which integer attributes of a class equal one dimension of one parameter, in all layers of that class.
Said = Mapping[type, set[tuple[str, str, int]]]


def assign(undo: Undo, module: nn.Module, names: Sequence[str], data: Tensor) -> None:
    """Give a parameter or buffer, under all its names, a new tensor."""
    new: Tensor | None = None
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        tables = (owner._parameters, owner._buffers, vars(owner))
        table: dict[str, Any] | None = next((table for table in tables if leaf in table), None)
        if table is None:
            raise WriteBackError(f"{type(owner).__name__} has no place for {name}; use program.module() instead")
        old = table[leaf]
        like = next(owner.parameters(recurse=False)) if old is None else old  # a layer without a bias gets one
        if new is None:
            data = data.to(like)
            new = nn.Parameter(data, like.requires_grad) if isinstance(like, nn.Parameter) else data
        undo.set_item(table, leaf, new)
        if old is not None:
            _replace_in_lists(undo, owner, old, new)


def _replace_in_lists(undo: Undo, owner: nn.Module, old: Tensor, new: Tensor) -> None:
    """Recurrent layers hold their weights in a list, too."""
    for key, value in vars(owner).items():
        if type(value) is list and any(item is old for item in value):
            undo.set_item(vars(owner), key, [new if item is old else item for item in value])


def said_by_weights(module: nn.Module) -> Said:
    """Which integer attributes say a dimension of a parameter."""
    found: dict[type, set[tuple[str, str, int]]] = {}
    for layer in module.modules():
        own = {leaf: tensor.shape for leaf, tensor in layer._parameters.items() if tensor is not None}
        here = {
            (name, leaf, dim)
            for name, value in vars(layer).items() if type(value) is int and value > 1
            for leaf, shape in own.items() for dim, size in enumerate(shape) if size == value
        }  # fmt: skip
        found[type(layer)] = found.get(type(layer), here) & here
    return found


def set_sizes(undo: Undo, module: nn.Module, said: Said, seen: set[tuple[int, str]]) -> None:
    """Let sizes say what the weights say, by what is known of standard layers, else by what was seen of a class.

    `seen` holds attributes, by layer and name, that a forward computes with: those are not set from weights.
    """
    for layer in module.modules():
        known = dict(_sizes(layer))
        for name, leaf, dim in () if known else said.get(type(layer), ()):
            tensor = layer._parameters[leaf]
            if tensor is not None and (id(layer), name) not in seen:
                known[name] = tensor.shape[dim]
        for name, value in known.items():
            if name in vars(layer) and vars(layer)[name] != value:
                undo.set_item(vars(layer), name, value)


def _sizes(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """The size attributes of a standard layer and their values, from the shape of its weight."""
    if isinstance(layer, nn.Linear):
        yield from zip(("out_features", "in_features"), layer.weight.shape, strict=True)
    elif isinstance(layer, nn.Embedding):
        yield from zip(("num_embeddings", "embedding_dim"), layer.weight.shape, strict=True)
    elif isinstance(layer, nn.LayerNorm | nn.RMSNorm) and layer.weight is not None:
        yield "normalized_shape", tuple(layer.weight.shape)
    elif isinstance(layer, nn.GroupNorm) and layer.weight is not None:
        yield "num_channels", layer.weight.shape[0]
    elif isinstance(layer, nn.modules.batchnorm._NormBase) and layer.weight is not None:
        yield "num_features", layer.weight.shape[0]
    elif isinstance(layer, nn.modules.conv._ConvNd):
        yield from _conv_sizes(layer, *layer.weight.shape[:2])
    elif isinstance(layer, nn.RNNBase):
        sizes: dict[str, Any] = layer._parameters
        yield from (("input_size", sizes["weight_ih_l0"].shape[1]), ("hidden_size", sizes["weight_hh_l0"].shape[1]))


def _conv_sizes(layer: nn.modules.conv._ConvNd, first: int, second: int) -> Iterator[tuple[str, int]]:
    """Those of a convolution, whose weight has shape (out, in / groups, ...), transposed (in, out / groups, ...)."""
    yield "in_channels", first if layer.transposed else second * layer.groups
    yield "out_channels", second * layer.groups if layer.transposed else first
