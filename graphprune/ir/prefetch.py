"""Prefetching: weights are read from the disk while a device computes with earlier ones."""

from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graphprune.ir.weights import DerivedWeights


@dataclass(frozen=True)
class Prefetched(DerivedWeights):
    """Weights of `base`; expected ones are read ahead, for a GPU into pinned memory."""

    device: str
    ready: dict[str, "Future[Tensor]"] = field(default_factory=dict)
    soon: set[str] = field(default_factory=set)
    reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def prefetch(self, names: Collection[str]) -> None:
        """Start to read these weights, unless segments run on the CPU.

        Weights that were prefetched before the last call, and not read since, are dropped.
        """
        if self.device == "cpu":
            return
        for name in self.ready.keys() - self.soon:
            del self.ready[name]
        self.soon.clear()
        self.soon.update(names)
        self.ready.update({name: self.reader.submit(self._read, name) for name in names if name not in self.ready})

    def __getitem__(self, name: str) -> Tensor:
        expected = self.ready.pop(name, None)
        return self.base[name] if expected is None else expected.result()

    def _read(self, name: str) -> Tensor:
        tensor = self.base[name]
        return tensor.pin_memory() if torch.device(self.device).type == "cuda" else tensor
