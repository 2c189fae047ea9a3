"""Layers with weights: assign new tensors, and set the size attributes to match."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import WriteBackError
from graphprune.support.undo import Undo

#: Integer attributes of a class that equal a dimension of a parameter in all its layers: (attribute, parameter, dim).
WeightSizes = Mapping[type, set[tuple[str, str, int]]]


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by all their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def assign(undo: Undo, module: nn.Module, names: Sequence[str], data: Tensor) -> None:
    """Replace a parameter or buffer, under all its names, by a new tensor of its dtype and device."""
    new: Tensor | None = None
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        tables = (owner._parameters, owner._buffers, vars(owner))
        table: dict[str, Any] | None = next((table for table in tables if leaf in table), None)
        if table is None:
            raise WriteBackError(
                f"{type(owner).__name__} has no parameter or buffer {name}; use program.module() instead"
            )
        old = table[leaf]
        template = next(owner.parameters(recurse=False)) if old is None else old  # a layer without a bias receives one
        if new is None:
            data = data.to(template)
            new = _parameter(data, template, old) if isinstance(template, nn.Parameter) else data
        undo.set_item(table, leaf, new)
        if old is not None:
            _replace_in_lists(undo, owner, old, new)


def _parameter(data: Tensor, template: nn.Parameter, old: Tensor | None) -> nn.Parameter:
    """A parameter with the class and the attributes of the old one, such as a mark against weight decay."""
    if old is None:
        return nn.Parameter(data, template.requires_grad)
    new: nn.Parameter = torch.Tensor._make_subclass(type(template), data, template.requires_grad)
    vars(new).update(vars(template))
    return new


def _replace_in_lists(undo: Undo, owner: nn.Module, old: Tensor, new: Tensor) -> None:
    """Replace a tensor also in the lists of its layer: recurrent layers hold their weights there too."""
    for key, value in vars(owner).items():
        if type(value) is list and any(item is old for item in value):
            undo.set_item(vars(owner), key, [new if item is old else item for item in value])


def sizes_from_weights(module: nn.Module) -> WeightSizes:
    """Integer attributes that equal a dimension of a parameter, by the class of the layer."""
    matches: dict[type, set[tuple[str, str, int]]] = {}
    for layer in module.modules():
        shapes = {leaf: tensor.shape for leaf, tensor in layer._parameters.items() if tensor is not None}
        equal = {
            (name, leaf, dim)
            for name, value in vars(layer).items() if type(value) is int and value > 1
            for leaf, shape in shapes.items() for dim, size in enumerate(shape) if size == value
        }  # fmt: skip
        matches[type(layer)] = matches.get(type(layer), equal) & equal
    return matches


def set_sizes(undo: Undo, module: nn.Module, weight_sizes: WeightSizes, traced: set[tuple[int, str]]) -> None:
    """Set size attributes to the shapes of the weights: those of standard layers, else those in `weight_sizes`.

    `traced` holds attributes, by identity of the layer and name, that a forward computes with: they are not set here.
    """
    for layer in module.modules():
        sizes = dict(_sizes(layer))
        for name, leaf, dim in () if sizes else weight_sizes.get(type(layer), ()):
            tensor = layer._parameters[leaf]
            if tensor is not None and (id(layer), name) not in traced:
                sizes[name] = tensor.shape[dim]
        for name, value in sizes.items():
            if name in vars(layer) and vars(layer)[name] != value:
                undo.set_item(vars(layer), name, value)


def _sizes(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """Size attributes of a standard layer and their values, from the shape of its weight."""
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
    """Sizes of a convolution with weight shape (out, in / groups, ...), transposed (in, out / groups, ...)."""
    yield "in_channels", first if layer.transposed else second * layer.groups
    yield "out_channels", second * layer.groups if layer.transposed else first
