"""A module as an exporter needs it: how it is called, and what its inputs, outputs and free dimensions are called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from graphprune.errors import ExportError

Feeds = dict[str, Tensor]

PAST, PRESENT = "past_key_values", "present"
BATCH, SEQUENCE, CACHED, TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"
WRITTEN = "decoder_sequence_length"
_WORDS = {"batch": BATCH, "sequence": SEQUENCE, "past": CACHED, "written": WRITTEN}


class Alias(nn.Module):
    """Shares the parameters of a model under the very same names, so that a plan made for one fits the other."""

    model_itself: nn.Module

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._parameters, self._buffers, self._modules = model._parameters, model._buffers, model._modules
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self.__dict__["model_itself"] = model.train(False)  # past registration, which would rename everything
        self.training = False


@dataclass(frozen=True)
class Subject:
    """A module that is called with `args`, and names for each input and output leaf.

    `dynamic` mirrors `args`: for every tensor, the name of each dimension that stays free; None if none does.
    """

    module: nn.Module
    args: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: Any
    vocabulary: int = 0
    dtype: torch.dtype = torch.float32

    @property
    def layers(self) -> int:
        """How many layers keep keys and values; 0 for a model without a cache."""
        return sum(name.endswith(".key") for name in self.inputs)

    @property
    def grows(self) -> bool:
        """Is it a decoder that is fed step by step, with a cache of any length?"""
        return self.layers > 0 and self.dynamic is not None

    def example(self) -> dict[str, Tensor]:
        """The example input leaves by name."""
        return dict(zip(self.inputs, pytree.tree_leaves(self.args), strict=True))

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Call the module with inputs by name; outputs by name."""
        spec = pytree.tree_structure(self.args)
        with torch.no_grad():
            outputs = self.module(*pytree.tree_unflatten([feeds[name] for name in self.inputs], spec))
        return dict(zip(self.outputs, pytree.tree_leaves(outputs), strict=True))

    def to(self, dtype: torch.dtype) -> "Subject":
        """The same subject computing in `dtype`: casts the module itself, in place.

        What is computed from the config and not saved, as the frequencies of a rotary embedding, keeps its precision,
        as in a model that transformers loads in `dtype`: rounded, they would be off by whole turns far into a text.
        """
        leaves, spec = pytree.tree_flatten(self.args)
        cast = [leaf.to(dtype) if leaf.is_floating_point() else leaf for leaf in leaves]
        return replace(self, module=_cast(self.module, dtype), args=pytree.tree_unflatten(cast, spec), dtype=dtype)

    def at(self, static: Mapping[str, int]) -> "Subject":
        """The same subject with examples of fixed sizes, ``batch``, ``sequence`` and ``past``; no dimension stays free.

        Raises:
            ExportError: if a size is left out, is none, or is of a dimension that the inputs do not have.
        """
        leaves, spec = pytree.tree_flatten(self.args)
        named, sizes = self._named(), sizes_of(static, self.sizes)
        new = [
            _resized(name, leaf, {dim: sizes[word] for dim, word in each.items()})
            for name, leaf, each in zip(self.inputs, leaves, named, strict=True)
        ]
        return replace(self, args=pytree.tree_unflatten(new, spec), dynamic=None)

    @property
    def sizes(self) -> list[str]:
        """The short names of the dimensions that are free."""
        found = {word for each in self._named() for word in each.values()}
        return [short for short, word in _WORDS.items() if word in found]

    def _named(self) -> list[dict[int, str]]:
        """The names of the free dimensions of each input."""
        if self.dynamic is None:
            return [{} for _ in self.inputs]
        named: list[dict[int, str]] = pytree.tree_leaves(self.dynamic, is_leaf=lambda node: isinstance(node, dict))
        return named

    def free(self) -> Any:
        """`dynamic` in the words of torch.export."""
        return None if self.dynamic is None else pytree.tree_map(lambda _: Dim.AUTO, self.dynamic)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all parameters, shared ones once."""
        return {name: tuple(tensor.shape) for name, tensor in self.module.named_parameters()}


def cache_names(prefix: str, layers: int) -> list[str]:
    """The names of keys and values as other tools expect them."""
    return [f"{prefix}.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def following(outputs: Feeds) -> Feeds:
    """The cache that a decoder made, as inputs of the next step."""
    return {name.replace(PRESENT, PAST, 1): x for name, x in outputs.items() if name.startswith(f"{PRESENT}.")}


def named_dimensions(names: Sequence[str], args: tuple[Any, ...]) -> Any:
    """`args` with, in the place of each tensor, the names of its free dimensions, by what the input is called."""
    leaves, spec = pytree.tree_flatten(args)
    return pytree.tree_unflatten([_dimensions(name, leaf) for name, leaf in zip(names, leaves, strict=True)], spec)


def _dimensions(name: str, tensor: Tensor) -> dict[int, str]:
    if name.startswith(PAST):
        return {0: BATCH, 2: CACHED}
    if name == "attention_mask":
        return {0: BATCH, 1: TOTAL}
    return {0: BATCH} if tensor.is_floating_point() or tensor.dim() < 2 else {0: BATCH, 1: SEQUENCE}


def sizes_of(static: Mapping[str, int], wanted: Sequence[str]) -> dict[str, int]:
    """Sizes by the names of dimensions, of those that are `wanted`.

    Raises:
        ExportError: if one is left out, is none, or is of another dimension.
    """
    if sorted(static) != sorted(wanted) or not all(isinstance(n, int) and n > 0 for n in static.values()):
        given = ",".join(f"{name}={size}" for name, size in static.items())
        raise ExportError(
            f"static sizes {given!r} do not fit this model: give {','.join(f'{name}=N' for name in wanted)}, each N a "
            "positive number"
        )
    sizes = {_WORDS[name]: size for name, size in static.items()}
    return {**sizes, TOTAL: sizes.get(CACHED, 0) + sizes.get(SEQUENCE, 0)}


def _resized(name: str, leaf: Tensor, sizes: Mapping[int, int]) -> Tensor:
    """Contents of no meaning in another shape: small numbers, and masks without padding."""
    shape = [sizes.get(dim, size) for dim, size in enumerate(leaf.shape)]
    if name == "attention_mask":
        return leaf.new_ones(shape)
    return leaf.new_zeros(shape)


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast what is saved of a module, in place."""
    parts = list(module.modules())
    computed = [(part, name, part._buffers[name]) for part in parts for name in part._non_persistent_buffers_set]
    module.to(dtype)
    for part, name, buffer in computed:
        part._buffers[name] = buffer
    return module
