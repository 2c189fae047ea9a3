"""Sums over calibration inputs, from which every score and refit is made."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass
class Drift:
    """Sums over tokens of D, shape (tokens, n): by how much other inputs, which a refit aims at, differ from X.

    `cross` is D^T X and `second` D^T D, both of shape (n, n); `first` the sum of rows, shape (n,).
    """

    cross: Tensor
    second: Tensor
    first: Tensor

    def __add__(self, other: "Drift") -> "Drift":
        return Drift(self.cross + other.cross, self.second + other.second, self.first + other.first)


@dataclass
class Moments:
    """Sums over the tokens seen by one consumer, features X of shape (tokens, n).

    `second` is X^T X, shape (n, n), or its diagonal alone, shape (n,); `first` the sum of rows, shape (n,).
    All are float64; products are made in the precision of the features, one batch at a time. `drift` says how
    other inputs differ, which a refit is to aim at; None where it aims at the same.
    """

    second: Tensor
    first: Tensor
    tokens: int = 0
    drift: Drift | None = None

    @classmethod
    def empty(cls, features: int, diagonal: bool = False) -> "Moments":
        """Nothing seen yet."""
        shape = (features,) if diagonal else (features, features)
        return cls(torch.zeros(shape, dtype=torch.float64), torch.zeros(features, dtype=torch.float64))

    def add(self, x: Tensor) -> None:
        """See a batch of features, shape (tokens, n)."""
        self.second += x.double().square().sum(0) if self.second.dim() == 1 else x.T @ x
        self.first += x.sum(0, dtype=torch.float64)
        self.tokens += x.shape[0]

    def aim(self, x: Tensor, shift: Tensor) -> None:
        """Aim at ``x + shift`` instead of the features `x`, both of shape (tokens, n)."""
        drift = Drift((shift.T @ x).double(), (shift.T @ shift).double(), shift.sum(0, dtype=torch.float64))
        self.drift = self.drift + drift if self.drift else drift

    @property
    def squares(self) -> Tensor:
        """The sum of squares of every feature, shape (n,)."""
        return self.second if self.second.dim() == 1 else self.second.diagonal()

    @cached_property
    def mean(self) -> Tensor:
        """The mean of every feature, shape (n,)."""
        return self.first / self.tokens

    def __add__(self, other: "Moments") -> "Moments":
        drift = self.drift + other.drift if self.drift and other.drift else None
        return Moments(self.second + other.second, self.first + other.first, self.tokens + other.tokens, drift)


@dataclass(frozen=True)
class Statistics:
    """A fact: the moments at every watched consumer, by the name of its node."""

    moments: dict[str, Moments]


@dataclass(frozen=True)
class Gradients:
    """A fact: sums over calibration batches of the gradients of a loss; `batches` is how many there were.

    For every parameter of an eligible group, by name: `first` the sum of gradients, `squares` that of their squares.
    `masks` has, for every group, the sum of the squared derivatives by a factor on each index, shape (rows, size).
    """

    first: Mapping[str, Tensor]
    squares: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    batches: int
