"""Weights by name, read when they are asked for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import safe_open
from torch import Tensor

Weights = Mapping[str, Tensor]
KeepByName = Mapping[str, Mapping[int, Tensor]]


@dataclass(frozen=True)
class Stored(Mapping[str, Tensor]):
    """Tensors in safetensors files, memory-mapped and cast to `dtype` on access.

    `places` says for every name in which file, and under which key, it lies.
    """

    places: Mapping[str, tuple[Path, str]]
    dtype: torch.dtype | None = None

    def __getitem__(self, name: str) -> Tensor:
        path, key = self.places[name]
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
        return tensor.to(self.dtype) if self.dtype and tensor.is_floating_point() else tensor

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class Layered(Mapping[str, Tensor]):
    """Weights from several stores, each name from the first that has it."""

    stores: tuple[Weights, ...]

    def __getitem__(self, name: str) -> Tensor:
        for store in self.stores:
            if name in store:
                return store[name]
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(name in store for store in self.stores)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for store in self.stores for name in store))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class _Cut(Mapping[str, Tensor]):
    """The weights of `base` without what `keep` leaves out, one way or the other."""

    base: Weights
    keep: KeepByName

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)

    def _kept(self, name: str) -> Iterator[tuple[int, Tensor]]:
        return iter(self.keep.get(name, MappingProxyType({})).items())


@dataclass(frozen=True)
class Narrowed(_Cut):
    """The weights of `base` without the indices that `keep` leaves out."""

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.base[name]
        for dim, indices in self._kept(name):
            tensor = tensor.index_select(dim, indices.to(tensor.device))
        return tensor


@dataclass(frozen=True)
class Masked(_Cut):
    """The weights of `base`, zero outside what `keep` says, in their old shapes."""

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.base[name]
        for dim, indices in self._kept(name):
            mask = torch.zeros(tensor.shape[dim], dtype=tensor.dtype, device=tensor.device)
            mask[indices] = 1
            tensor = tensor * mask.view(-1, *[1] * (tensor.dim() - dim - 1))
        return tensor


@dataclass(frozen=True)
class Scaled(Mapping[str, Tensor]):
    """The weights of `base`, some of them multiplied by a number, or by a tensor that broadcasts to their shape."""

    base: Weights
    factors: Mapping[str, float] | Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.base[name]
        return tensor * self.factors[name] if name in self.factors else tensor

    def __contains__(self, name: object) -> bool:
        return name in self.base

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)
