"""Export subjects: a module with its call, and the names of its inputs, outputs and dynamic dimensions."""

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
DECODER_SEQUENCE = "decoder_sequence_length"
_DIMENSIONS = {"batch": BATCH, "sequence": SEQUENCE, "past": CACHED, "written": DECODER_SEQUENCE}


class Alias(nn.Module):
    """Wraps a model and shares its parameters under the same names, so that a plan for one fits the other."""

    model_itself: nn.Module

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._parameters, self._buffers, self._modules = model._parameters, model._buffers, model._modules
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self.__dict__["model_itself"] = model.train(False)  # bypass registration, which would add a prefix to all names
        self.training = False


@dataclass(frozen=True)
class Subject:
    """A module that is called with `args`, with a name for each input and output leaf.

    `dynamic` mirrors `args`: for every tensor the names of its dynamic dimensions by position; None if all are static.
    `window` is the number of tokens that layers of sliding windows see, 0 if there are none.
    """

    module: nn.Module
    args: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: Any
    vocabulary: int = 0
    dtype: torch.dtype = torch.float32
    window: int = 0

    @property
    def layers(self) -> int:
        """Number of layers with a key/value cache; 0 for a model without a cache."""
        return sum(name.endswith(".key") for name in self.inputs)

    @property
    def has_growing_cache(self) -> bool:
        """Whether this is a decoder with a cache of dynamic length, which is called step by step."""
        return self.layers > 0 and self.dynamic is not None

    def example(self) -> dict[str, Tensor]:
        """Example input leaves by name."""
        return dict(zip(self.inputs, pytree.tree_leaves(self.args), strict=True))

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Call the module with inputs by name; return the outputs by name."""
        spec = pytree.tree_structure(self.args)
        with torch.no_grad():
            outputs = self.module(*pytree.tree_unflatten([feeds[name] for name in self.inputs], spec))
        return dict(zip(self.outputs, pytree.tree_leaves(outputs), strict=True))

    def to(self, dtype: torch.dtype) -> "Subject":
        """Cast the module to `dtype`, in place, and return the subject with inputs of that type.

        Buffers that are computed from the config and not saved, such as the rotary frequencies, retain their precision,
        as in a model that transformers loads in `dtype`: rounded ones would be off by whole rotations in a long text.
        """
        leaves, spec = pytree.tree_flatten(self.args)
        cast = [leaf.to(dtype) if leaf.is_floating_point() else leaf for leaf in leaves]
        return replace(self, module=_cast(self.module, dtype), args=pytree.tree_unflatten(cast, spec), dtype=dtype)

    def at(self, static: Mapping[str, int]) -> "Subject":
        """Return the subject with static sizes, such as ``batch``, ``sequence`` and ``past``, for all its dimensions.

        Raises:
            ExportError: if a size is missing, not positive, or of a dimension that the inputs do not have.
        """
        leaves, spec = pytree.tree_flatten(self.args)
        named, sizes = self._named(), sizes_of(static, self.sizes)
        new = [
            _resized(name, leaf, {dim: sizes[dimension] for dim, dimension in dims.items()})
            for name, leaf, dims in zip(self.inputs, leaves, named, strict=True)
        ]
        return replace(self, args=pytree.tree_unflatten(new, spec), dynamic=None)

    @property
    def sizes(self) -> list[str]:
        """Short names of the dynamic dimensions; those of other tools' files have the names of the file."""
        free = {dimension: None for dims in self._named() for dimension in dims.values()}
        own = [short for short, dimension in _DIMENSIONS.items() if dimension in free]
        return own + [name for name in free if name not in (*_DIMENSIONS.values(), TOTAL)]

    @property
    def leading(self) -> set[str]:
        """Short names of the dynamic dimensions that are the first one of an input, as batches are."""
        shorts = {dimension: short for short, dimension in _DIMENSIONS.items()}
        return {shorts.get(dims[0], dims[0]) for dims in self._named() if 0 in dims}

    def _named(self) -> list[dict[int, str]]:
        """Names of the dynamic dimensions of each input, by position."""
        if self.dynamic is None:
            return [{} for _ in self.inputs]
        named: list[dict[int, str]] = pytree.tree_leaves(self.dynamic, is_leaf=lambda node: isinstance(node, dict))
        return named

    def free(self) -> Any:
        """`dynamic` as the dynamic shapes of torch.export."""
        return None if self.dynamic is None else pytree.tree_map(lambda _: Dim.AUTO, self.dynamic)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all parameters, shared ones once."""
        return {name: tuple(tensor.shape) for name, tensor in self.module.named_parameters()}


def cache_names(prefix: str, layers: int) -> list[str]:
    """Names of the keys and values of a cache, as other tools expect them."""
    return [f"{prefix}.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def next_cache(outputs: Feeds) -> Feeds:
    """The cache among the outputs of a decoder, under the input names of the next step."""
    return {name.replace(PRESENT, PAST, 1): x for name, x in outputs.items() if name.startswith(f"{PRESENT}.")}


def named_dimensions(names: Sequence[str], args: tuple[Any, ...]) -> Any:
    """`args` with each tensor replaced by the names of its dynamic dimensions, which follow from the input's name."""
    leaves, spec = pytree.tree_flatten(args)
    return pytree.tree_unflatten([_dimensions(name, leaf) for name, leaf in zip(names, leaves, strict=True)], spec)


def _dimensions(name: str, tensor: Tensor) -> dict[int, str]:
    if name.startswith(PAST):
        return {0: BATCH, 2: CACHED}
    if name == "attention_mask":
        return {0: BATCH, 1: TOTAL}
    return {0: BATCH} if tensor.is_floating_point() or tensor.dim() < 2 else {0: BATCH, 1: SEQUENCE}


def sizes_of(static: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """Sizes by full names of dimensions; `static` must have a size for each of the short `names`.

    Raises:
        ExportError: if a size is missing, not positive, or of another dimension.
    """
    if sorted(static) != sorted(names) or not all(isinstance(n, int) and n > 0 for n in static.values()):
        requested = ",".join(f"{name}={size}" for name, size in static.items())
        raise ExportError(
            f"static sizes {requested!r} do not fit this model: pass {','.join(f'{name}=N' for name in names)}, each "
            "N a positive number"
        )
    sizes = {_DIMENSIONS.get(name, name): size for name, size in static.items()}
    return {**sizes, TOTAL: sizes.get(CACHED, 0) + sizes.get(SEQUENCE, 0)}


def _resized(name: str, leaf: Tensor, sizes: Mapping[int, int]) -> Tensor:
    """A placeholder tensor of another shape: zeros, or for the attention mask ones."""
    shape = [sizes.get(dim, size) for dim, size in enumerate(leaf.shape)]
    if name == "attention_mask":
        return leaf.new_ones(shape)
    return leaf.new_zeros(shape)


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast a module, in place, except for the buffers that are not saved."""
    parts = list(module.modules())
    computed = [(part, name, part._buffers[name]) for part in parts for name in part._non_persistent_buffers_set]
    module.to(dtype)
    for part, name, buffer in computed:
        part._buffers[name] = buffer
    return module
