"""Kinds of entries of the field family: a module in memory, and a folder of files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from tests.zoo.refill import refill

Inputs = tuple[tuple[Any, ...], Mapping[str, Any]]
SEED = 1  # of the weights


@dataclass(frozen=True)
class FieldModel:
    """A module, its inputs by seed, and what its own library does with it.

    `part` is the path of the submodule that is captured, where the whole module cannot be; `fit` trains the module a
    step and returns the loss, `own_export` writes the module as ONNX to a folder and returns the file.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    packages: tuple[str, ...] = ()
    part: str = ""
    fit: Callable[[nn.Module, Inputs], float] | None = None
    own_export: Callable[[nn.Module, Path], Path] | None = None

    def build(self) -> nn.Module:
        """The module in float32, in evaluation mode, every parameter of distinct values; the same every time."""
        torch.manual_seed(SEED)
        module = self.make().float().eval()
        return refill(module.requires_grad_(True), SEED)


@dataclass(frozen=True)
class FieldFolder:
    """A folder of files as a library saves it: `save` writes the original, `load` reads what pruning wrote."""

    save: Callable[[Path], None]
    load: Callable[[Path], Any]
    run: Callable[[Any, int], Tensor]
    packages: tuple[str, ...] = ()


def normal(*shape: int, seed: int) -> Tensor:
    """Normally distributed numbers."""
    return torch.randn(*shape, generator=Generator().manual_seed(seed))


def uniform(*shape: int, seed: int) -> Tensor:
    """Numbers between 0 and 1, as an image has."""
    return torch.rand(*shape, generator=Generator().manual_seed(seed))


def tokens(*shape: int, seed: int, low: int = 10, high: int = 128) -> Tensor:
    """Tokens of a text, none of them special."""
    return torch.randint(low, high, shape, generator=Generator().manual_seed(seed))
