"""Weights by name, read on access."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from graphprune.errors import LoadError, because

Weights = Mapping[str, Tensor]
KeepByName = Mapping[str, Mapping[int, Tensor]]


FileStamp = tuple[int, int]  # size of a file in bytes, and its modification time in nanoseconds


def file_stamp(path: Path) -> FileStamp:
    """Stamp of a file, which differs once the file has changed."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@dataclass(frozen=True)
class Stored(Mapping[str, Tensor]):
    """Tensors in safetensors files, memory-mapped and cast to `dtype` on access.

    `places` has the file and key of every name; `stamps` are those of the files when their headers were read. Reading
    raises a LoadError if a file is missing, damaged or changed. Wrong numbers in a complete file are not detected.
    """

    places: Mapping[str, tuple[Path, str]]
    dtype: torch.dtype | None = None
    stamps: Mapping[Path, FileStamp] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        path, key = self.places[name]
        try:
            same = path not in self.stamps or file_stamp(path) == self.stamps[path]
            tensor = _mapped(path, key) if same else None
        except (SafetensorError, OSError, RuntimeError) as fault:
            raise LoadError(
                f"{path} holds no {key} that can be read{because(fault)}; it is truncated, damaged or missing: copy "
                "it again, and start again"
            ) from fault
        if tensor is None:
            raise LoadError(
                f"{path} has changed since it was opened; do not change it while it is read, and start again"
            )
        return tensor.to(self.dtype) if self.dtype and tensor.is_floating_point() else tensor

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def _mapped(path: Path, key: str) -> Tensor:
    """Tensor over the memory of the file, which is mapped while the tensor exists."""
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(key)
    return tensor


@dataclass(frozen=True)
class Layered(Mapping[str, Tensor]):
    """Weights of several stores, each name from the first that has it."""

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


def broadcast_indices(indices: Tensor, dim: int, rank: int) -> Tensor:
    """Retained indices of dimension `dim`, with as many dimensions as the tensor."""
    return indices.view([-1 if i == dim else 1 for i in range(rank)]) if indices.dim() == 1 else indices


def narrow(tensor: Tensor, dim: int, indices: Tensor) -> Tensor:
    """Tensor restricted to the retained indices, which may depend on the index of other dimensions."""
    indices = indices.to(tensor.device)
    return tensor.index_select(dim, indices) if indices.dim() == 1 else tensor.take_along_dim(indices, dim)


def widen(tensor: Tensor, dim: int, indices: Tensor, size: int) -> Tensor:
    """Inverse of `narrow`: the tensor with zeros at the removed indices."""
    shape = [size if i == dim else n for i, n in enumerate(tensor.shape)]
    places = broadcast_indices(indices, dim, tensor.dim()).to(tensor.device).expand(tensor.shape)
    return tensor.new_zeros(shape).scatter(dim, places, tensor)


@dataclass(frozen=True)
class DerivedWeights(Mapping[str, Tensor]):
    """Weights of `base` under the same names, changed one at a time as they are read."""

    base: Weights

    def __contains__(self, name: object) -> bool:
        return name in self.base

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)


@dataclass(frozen=True)
class MaterializedWeights(DerivedWeights):
    """Weights that may be on the meta device, where they have shapes but no numbers; reading those fails."""

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.base[name]
        if tensor.is_meta:
            raise LoadError(
                f"{name} is on the meta device and holds no numbers; the model can be analysed so, but give its "
                "parameters numbers (module.to_empty, load_state_dict) to score, run or save it"
            )
        return tensor


@dataclass(frozen=True)
class _Cut(DerivedWeights):
    """Weights of `base` without the indices outside `keep`, either cut or masked."""

    keep: KeepByName

    def _retained(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """Retained indices by dimension, last first: those of an earlier one may depend on its original indices."""
        return iter(sorted(self.keep.get(name, MappingProxyType({})).items(), reverse=True))


@dataclass(frozen=True)
class Narrowed(_Cut):
    """Weights of `base`, cut to the indices in `keep`."""

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.base[name]
        for dim, indices in self._retained(name):
            tensor = narrow(tensor, dim, indices)
        return tensor


@dataclass(frozen=True)
class Masked(_Cut):
    """Weights of `base` in their original shapes, zero outside the indices in `keep`."""

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.base[name]
        for dim, indices in self._retained(name):
            every = broadcast_indices(indices, dim, tensor.dim()).to(tensor.device)
            mask = tensor.new_zeros([tensor.shape[i] if i == dim else n for i, n in enumerate(every.shape)])
            tensor = tensor * mask.scatter(dim, every, 1)
        return tensor


@dataclass(frozen=True)
class Renamed(Mapping[str, Tensor]):
    """Weights of `base` under new names: `names` has the old name for each."""

    base: Weights
    names: Mapping[str, str]

    def __getitem__(self, name: str) -> Tensor:
        return self.base[self.names[name]]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Scaled(DerivedWeights):
    """Weights of `base`, some multiplied by a number, or by a tensor that broadcasts to their shape."""

    factors: Mapping[str, float] | Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.base[name]
        return tensor * self.factors[name] if name in self.factors else tensor
