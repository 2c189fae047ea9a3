"""Numbers for weights that have shapes but no memory, so that a module without them can be run and compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from graphprune.frontends.skeletons import is_fake

aten = torch.ops.aten
RANK = 4
LARGEST = 1 << 26  # numbers of a weight that an operator may need all at once


class TooLargeError(Exception):
    """An operator needs all numbers of a weight that is too large for a quick comparison."""


class GeneratedWeight(Tensor):
    """Weight of low rank in the memory of its factors; all its numbers differ, and those of its transpose.

    `left` has shape (..., o, r) and `right` (..., i, r). Products with it are those of its factors. Any other operator
    computes with all its numbers.
    """

    left: Tensor
    right: Tensor

    @staticmethod
    def __new__(cls, left: Tensor, right: Tensor, dtype: torch.dtype) -> GeneratedWeight:
        """Wrapper of two factors in single precision or wider; products are rounded to `dtype`."""
        shape = (*left.shape[:-1], right.shape[-2])
        made: GeneratedWeight = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=left.device)
        made.left, made.right = left, right
        return made

    def dense(self) -> Tensor:
        """All numbers.

        Raises:
            TooLargeError: if they are too many.
        """
        if self.numel() > LARGEST:
            raise TooLargeError(f"a weight of shape {list(self.shape)}")
        return (self.left @ self.right.mT).to(self.dtype)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Run an operator on factors where that is possible."""
        if func in _BY_FACTORS and (result := _BY_FACTORS[func](*args)) is not None:
            return result
        args, kwargs = pytree.tree_map_only(GeneratedWeight, GeneratedWeight.dense, (args, kwargs or {}))
        return func(*args, **kwargs)


def _same(weight: GeneratedWeight) -> Tensor:
    return GeneratedWeight(weight.left, weight.right, weight.dtype)


def _transposed(weight: GeneratedWeight, *dims: int) -> Tensor | None:
    last = {dim % weight.dim() for dim in dims} == {weight.dim() - 1, weight.dim() - 2} or not dims
    return GeneratedWeight(weight.right, weight.left, weight.dtype) if last else None


def _product(x: Any, weight: Any) -> Tensor | None:
    if isinstance(x, GeneratedWeight) or not isinstance(weight, GeneratedWeight):
        return None
    product: Tensor = (x.to(weight.left.dtype) @ weight.left) @ weight.right.mT
    return product.to(x.dtype)


def _sum_product(bias: Any, x: Any, weight: Any) -> Tensor | None:
    product = _product(x, weight)
    return None if product is None else product + bias


def _rows(weight: Any, indices: Tensor, *_: Any) -> Tensor | None:
    if not isinstance(weight, GeneratedWeight) or weight.dim() != 2:
        return None
    return (weight.left[indices] @ weight.right.mT).to(weight.dtype)


def _selected(weight: GeneratedWeight, dim: int, index: int) -> Tensor | None:
    if weight.dim() < 3 or dim != 0:
        return None
    return GeneratedWeight(weight.left[index], weight.right[index], weight.dtype)


_BY_FACTORS: dict[Any, Callable[..., Tensor | None]] = {
    aten.detach.default: _same, aten.alias.default: _same, aten.t.default: _transposed,
    aten.transpose.int: _transposed, aten.mm.default: _product, aten.bmm.default: _product,
    aten.addmm.default: _sum_product, aten.embedding.default: _rows, aten.select.int: _selected,
}  # fmt: skip


def lacks_numbers(tensor: Tensor) -> bool:
    """Whether the tensor has a shape but no memory."""
    return tensor.is_meta or is_fake(tensor)


def generated(module: nn.Module) -> dict[str, Tensor]:
    """Numbers of all floating-point parameters and buffers without memory, by every name."""
    names = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    empty = {name: tensor for name, tensor in names if lacks_numbers(tensor) and tensor.is_floating_point()}
    first: dict[int, Tensor] = {}
    seeds = count()
    for tensor in empty.values():
        if id(tensor) not in first:
            first[id(tensor)] = _numbers(tuple(tensor.shape), tensor.dtype, next(seeds))
    return {name: first[id(tensor)] for name, tensor in empty.items()}


def _numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Numbers around zero for matrices, scaled by the square root of their inputs; around one for vectors."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    if len(shape) < 2:
        return (1 + draw(*shape) / 10).to(dtype)
    scale = (RANK * max(math.prod(shape[1:]), 1)) ** -0.5
    left, right = draw(*shape[:-1], RANK) * scale, draw(*shape[:-2], shape[-1], RANK)
    wide = torch.promote_types(dtype, torch.float32)  # kernels for half precision are slow
    return GeneratedWeight(left.to(wide), right.to(wide), dtype)
