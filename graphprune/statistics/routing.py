"""Sums over the rows that a router sends to each index of an axis, such as the tokens of an expert."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.support import distributed


@dataclass(frozen=True)
class RoutedSums:
    """Sums over the rows of every index: their number, their norms, and the squares of these, shape (indices,)."""

    tokens: Tensor
    norms: Tensor
    squares: Tensor

    @classmethod
    def of(cls, rows: Tensor, ends: Tensor) -> "RoutedSums":
        """Sums over rows, shape (rows, features), of which index i owns those before ``ends[i]``."""
        norms = torch.linalg.vector_norm(rows.double(), dim=1)
        return cls(by_owner(torch.ones_like(norms), ends), by_owner(norms, ends), by_owner(norms.square(), ends))

    def __add__(self, other: "RoutedSums") -> "RoutedSums":
        return RoutedSums(self.tokens + other.tokens, self.norms + other.norms, self.squares + other.squares)

    @classmethod
    def all_reduced(cls, own: "RoutedSums | None") -> "RoutedSums | None":
        """Sums over the rows of all processes; this one may have none."""
        totals = distributed.all_reduce_sum(None if own is None else (own.tokens, own.norms, own.squares), 3)
        return None if totals is None else cls(*totals)


@dataclass(frozen=True)
class Routing:
    """Fact: the sums of every contribution, by the name of its node."""

    sums: Mapping[str, RoutedSums]


def by_owner(values: Tensor, ends: Tensor) -> Tensor:
    """Sums of the values of all rows, shape (rows,), by their index: index i owns those before ``ends[i]``."""
    total = torch.cat([values.new_zeros(1), values.cumsum(0)])
    after = total[ends.long()]
    return after - torch.cat([values.new_zeros(1), after[:-1]])
