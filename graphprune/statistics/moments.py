"""Sums over calibration inputs, from which every score and refit is made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from graphprune.support import distributed
from graphprune.support.workspace import zeros

BLOCKS, LEAST = 8, 256  # blocks that are too small are slow


@dataclass
class Drift:
    """Sums over tokens of D, shape (tokens, m): by how much outputs at which a refit aims differ from those of X.

    `cross` is D^T X, shape (m, n); `second` the sum of squares, and `first` the sum, of each output, shape (m,).
    """

    cross: Tensor
    squares: Tensor
    sums: Tensor

    def __add__(self, other: "Drift") -> "Drift":
        return Drift(self.cross + other.cross, self.squares + other.squares, self.sums + other.sums)

    @classmethod
    def of(cls, x: Tensor, shift: Tensor) -> "Drift":
        """From a batch of features, shape (tokens, n), and the shift of the outputs, shape (tokens, m)."""
        return cls((shift.T @ x).double(), shift.double().square().sum(0), shift.sum(0, dtype=torch.float64))

    @classmethod
    def all_reduced(cls, own: "Drift | None") -> "Drift | None":
        """The sums over the tokens of all processes; this one may have seen none."""
        found = distributed.all_reduce_sum(None if own is None else (own.cross, own.squares, own.sums), 3)
        return None if found is None else cls(*found)

    def rows(self, kept: Tensor) -> "Drift":
        """The same for some of the outputs only."""
        return Drift(self.cross[kept], self.squares[kept], self.sums[kept])


@dataclass
class Moments:
    """Sums over the tokens seen by one consumer, features X of shape (tokens, n).

    `second` is X^T X, shape (n, n), or its diagonal alone, shape (n,); `first` the sum of rows, shape (n,).
    All are float64; one batch at a time is summed in the precision of the features. `drift` says how
    the outputs differ at which a refit is to aim; None where it aims at those of the same inputs.
    """

    gram: Tensor
    sums: Tensor
    tokens: int = 0
    drift: Drift | None = None

    @classmethod
    def empty(cls, features: int, diagonal: bool = False, device: torch.device | str = "cpu") -> "Moments":
        """Nothing seen yet."""
        first = torch.zeros(features, dtype=torch.float64, device=device)
        if diagonal:
            return cls(first.clone(), first)
        return cls(zeros(features, features, device=device), first)

    @classmethod
    def all_reduced(cls, own: "Moments | None") -> "Moments | None":
        """The sums over the tokens of all processes; this one may have seen none."""
        sums = None if own is None else (own.gram, own.sums, own.sums.new_tensor([own.tokens]))
        found = distributed.all_reduce_sum(sums, 3)
        return None if found is None else cls(found[0], found[1], int(found[2]))

    def add(self, x: Tensor) -> None:
        """See a batch of features, shape (tokens, n)."""
        if self.gram.dim() == 1:
            self.gram += torch.linalg.vecdot(x, x, dim=0)
        else:
            _add_square(self.gram, x)
        self.sums += x.sum(0)
        self.tokens += x.shape[0]

    @property
    def squares(self) -> Tensor:
        """The sum of squares of every feature, shape (n,)."""
        return self.gram if self.gram.dim() == 1 else self.gram.diagonal()

    @cached_property
    def mean(self) -> Tensor:
        """The mean of every feature, shape (n,)."""
        return self.sums / self.tokens

    def __add__(self, other: "Moments") -> "Moments":
        drift = self.drift + other.drift if self.drift and other.drift else None
        return Moments(self.gram + other.gram, self.sums + other.sums, self.tokens + other.tokens, drift)


def block_width(features: int) -> int:
    """How wide the blocks of a square of so many features are."""
    return max(-(-features // BLOCKS), LEAST)


def _add_square(total: Tensor, x: Tensor) -> None:
    """Add X^T X, of which the part above the diagonal is computed once, a row of blocks at a time."""
    width = block_width(x.shape[1])
    for start in range(0, x.shape[1], width):
        end = start + width
        block = x[:, start:end].T @ x[:, start:]
        total[start:end, start:] += block
        total[end:, start:end] += block[:, width:].T


def to_tensors(moments: Mapping[str, Moments]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The sums as tensors by name, and as JSON whose they are and over how many tokens; shared ones once."""
    owner = {id(found): node for node, found in reversed(list(moments.items()))}
    tensors = dict[str, Tensor]()
    for node, found in moments.items():
        if owner[id(found)] == node:
            tensors |= {f"{node}.second": found.gram.cpu(), f"{node}.first": found.sums.cpu()}
    return tensors, {node: [owner[id(found)], found.tokens] for node, found in moments.items()}


def from_tensors(tensors: Mapping[str, Tensor], table: Mapping[str, Any]) -> dict[str, Moments]:
    """What was `stored`."""
    found = dict[str, Moments]()
    for node, (owner, tokens) in table.items():
        own = Moments(tensors[f"{owner}.second"], tensors[f"{owner}.first"], tokens) if owner == node else None
        found[node] = own or found[owner]
    return found


@dataclass(frozen=True)
class Statistics:
    """A fact: the moments at every watched consumer, by the name of its node."""

    moments: dict[str, Moments]


@dataclass(frozen=True)
class FullMoments:
    """A fact: the statistics hold whole Gram matrices, and not their diagonals alone."""


@dataclass(frozen=True)
class ProducerMoments:
    """A fact: the statistics hold moments at the layers that produce a group, too."""


@dataclass(frozen=True)
class ParameterGradients:
    """A fact: the gradients of parameters and masks are known."""


@dataclass(frozen=True)
class OutputGradients:
    """A fact: the gradients at the outputs of layers that contract a group are known."""


@dataclass(frozen=True)
class FactorGradients:
    """A fact: the gradients at the outputs of all layers that can be factorized are known."""


@dataclass(frozen=True)
class GradientSums:
    """A fact: sums over calibration batches of the gradients of a loss; `batches` is how many there were.

    For every parameter of an eligible group, by name: `first` the sum of gradients, `squares` that of their squares.
    `masks` has, for every group, the sum of the squared derivatives by a factor on each index, shape (rows, size).
    `outputs` has, by the node of a linear map that contracts such a group, the mean over tokens of G G^T, where G are
    the gradients at its outputs, shape (m, m); they are known up to a factor that is the same for all maps.
    """

    sums: Mapping[str, Tensor]
    squares: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    batches: int
    output_grams: Mapping[str, Tensor] = field(default_factory=dict)
