"""A module as an exporter needs it: how it is called, and what its inputs, outputs and free dimensions are called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

PAST, PRESENT = "past_key_values", "present"
BATCH, SEQUENCE, CACHED, TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"


@dataclass(frozen=True)
class Subject:
    """A module that is called with `args`, and names for each input and output leaf.

    `dynamic` mirrors `args`: for every tensor, the name of each dimension that stays free.
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
        """The same subject computing in `dtype`: casts the module itself, in place."""
        leaves, spec = pytree.tree_flatten(self.args)
        cast = [leaf.to(dtype) if leaf.is_floating_point() else leaf for leaf in leaves]
        return replace(self, module=self.module.to(dtype), args=pytree.tree_unflatten(cast, spec), dtype=dtype)

    def free(self) -> Any:
        """`dynamic` in the words of torch.export."""
        return pytree.tree_map(lambda _: Dim.AUTO, self.dynamic)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all parameters, shared ones once."""
        return {name: tuple(tensor.shape) for name, tensor in self.module.named_parameters()}


def cache_names(prefix: str, layers: int) -> list[str]:
    """The names of keys and values as other tools expect them."""
    return [f"{prefix}.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


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
