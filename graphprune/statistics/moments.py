"""Sums over calibration inputs, from which scores and refits are computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from graphprune.support import distributed
from graphprune.support.workspace import zeros

DOUBLE = torch.float64
BLOCKS, LEAST = 8, 256  # smaller blocks are slow


@dataclass
class Drift:
    """Sums over tokens of D, shape (tokens, m): the target outputs of a refit minus the outputs of X.

    `cross` is D^T X, shape (m, n); `squares` and `sums` have the sum of squares and the sum of each output, shape (m,).
    """

    cross: Tensor
    squares: Tensor
    sums: Tensor

    def __add__(self, other: "Drift") -> "Drift":
        return Drift(self.cross + other.cross, self.squares + other.squares, self.sums + other.sums)

    @classmethod
    def of(cls, x: Tensor, shift: Tensor, roots: Tensor | None = None) -> "Drift":
        """Drift of a batch of features, shape (tokens, n), and the shift of their outputs, shape (tokens, m); `roots`
        are the square roots of the weights of tokens, shape (tokens, 1)."""
        if roots is not None:
            weighted = shift * roots.square()
            squares = (shift * roots).double().square().sum(0)
            return cls((weighted.T @ x).double(), squares, weighted.sum(0, dtype=torch.float64))
        return cls((shift.T @ x).double(), shift.double().square().sum(0), shift.sum(0, dtype=torch.float64))

    @classmethod
    def all_reduced(cls, own: "Drift | None") -> "Drift | None":
        """Sums over the tokens of all processes; this one may have none."""
        totals = distributed.all_reduce_sum(None if own is None else (own.cross, own.squares, own.sums), 3)
        return None if totals is None else cls(*totals)

    def rows(self, outputs: Tensor) -> "Drift":
        """Drift of some outputs only."""
        return Drift(self.cross[outputs], self.squares[outputs], self.sums[outputs])


@dataclass
class InputDrift:
    """Sums over tokens of Y - X, the reference inputs of layers minus those given: the drift of each layer follows.

    `cross` is (Y - X)^T X and `gram` is (Y - X)^T (Y - X), shape (n, n); `sums` has the sum of each input, shape (n,).
    """

    cross: Tensor
    gram: Tensor
    sums: Tensor

    @classmethod
    def empty(cls, features: int, device: torch.device | str = "cpu") -> "InputDrift":
        """Sums of no tokens."""
        cross, gram = (zeros(features, features, device=device, dtype=DOUBLE) for _ in range(2))
        return cls(cross, gram, torch.zeros(features, dtype=DOUBLE, device=device))

    @classmethod
    def all_reduced(cls, own: "InputDrift | None") -> "InputDrift | None":
        """Sums over the tokens of all processes; this one may have none."""
        totals = distributed.all_reduce_sum(None if own is None else (own.cross, own.gram, own.sums), 3)
        return None if totals is None else cls(*totals)

    def add(self, x: Tensor, reference: Tensor) -> None:
        """Add a batch of given and of reference inputs, both of shape (tokens, n)."""
        shift = reference - x
        self.cross += shift.T @ x
        _add_square(self.gram, shift)
        self.sums += shift.sum(0, dtype=DOUBLE)

    def of_outputs(self, weight: Tensor) -> Drift:
        """Drift whose D is ``weight (Y - X)``, for a matrix of shape (m, n)."""
        weight = weight.to(self.cross)
        squares = ((weight @ self.gram) * weight).sum(1).clamp(min=0)
        return Drift(weight @ self.cross, squares, weight @ self.sums)


@dataclass
class Moments:
    """Sums over the tokens of one consumer, with features X of shape (tokens, n).

    `gram` is the Gram matrix X^T X, shape (n, n), or its diagonal, shape (n,); it is the Hessian of the squared output
    error up to a factor. `sums` is the sum of rows, shape (n,). Both are float64, or float32 where tokens count by the
    energy of their gradients, which is an estimate itself; one batch at a time is summed in the precision of the
    features. `drift` is the shift of the target outputs of a refit; None if these are the outputs of the same inputs.
    """

    gram: Tensor
    sums: Tensor
    tokens: float = 0
    drift: Drift | None = None

    @classmethod
    def empty(
        cls, features: int, diagonal: bool = False, device: torch.device | str = "cpu", dtype: torch.dtype = DOUBLE
    ) -> "Moments":
        """Moments of no tokens."""
        first = torch.zeros(features, dtype=dtype, device=device)
        if diagonal:
            return cls(first.clone(), first)
        return cls(zeros(features, features, device=device, dtype=dtype), first)

    @classmethod
    def all_reduced(cls, own: "Moments | None") -> "Moments | None":
        """Sums over the tokens of all processes; this one may have none."""
        sums = None if own is None else (own.gram, own.sums, own.sums.new_tensor([own.tokens]))
        totals = distributed.all_reduce_sum(sums, 3)
        if totals is None:
            return None
        tokens = float(totals[2])
        return cls(totals[0], totals[1], int(tokens) if tokens.is_integer() else tokens)

    def add(self, x: Tensor, roots: Tensor | None = None) -> None:
        """Add a batch of features, shape (tokens, n); `roots` are the square roots of the weights of tokens."""
        if roots is not None:
            self.sums += (x * roots.square()).sum(0)
            self.tokens += float(roots.square().sum())
            _add_square(self.gram, x * roots)
            return
        if self.gram.dim() == 1:
            self.gram += torch.linalg.vecdot(x, x, dim=0)
        else:
            _add_square(self.gram, x)
        self.sums += x.sum(0)
        self.tokens += x.shape[0]

    @property
    def squares(self) -> Tensor:
        """Sum of squares of every feature, shape (n,)."""
        return self.gram if self.gram.dim() == 1 else self.gram.diagonal()

    @cached_property
    def mean(self) -> Tensor:
        """Mean of every feature, shape (n,)."""
        return self.sums / self.tokens

    def double(self) -> "Moments":
        """Moments in double precision."""
        return replace(self, gram=self.gram.double(), sums=self.sums.double())

    def __add__(self, other: "Moments") -> "Moments":
        drift = self.drift + other.drift if self.drift and other.drift else None
        return Moments(self.gram + other.gram, self.sums + other.sums, self.tokens + other.tokens, drift)


def block_width(features: int) -> int:
    """Width of the blocks of a Gram matrix of so many features."""
    return max(-(-features // BLOCKS), LEAST)


def _add_square(total: Tensor, x: Tensor) -> None:
    """Add X^T X; blocks above the diagonal are computed once, a row of blocks at a time."""
    width = block_width(x.shape[1])
    for start in range(0, x.shape[1], width):
        end = start + width
        block = x[:, start:end].T @ x[:, start:]
        total[start:end, start:] += block
        total[end:, start:end] += block[:, width:].T


def to_tensors(moments: Mapping[str, Moments]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Sums as tensors by name, and a table for JSON of their owners and numbers of tokens; shared sums once."""
    owner = {id(sums): node for node, sums in reversed(list(moments.items()))}
    tensors = dict[str, Tensor]()
    for node, sums in moments.items():
        if owner[id(sums)] == node:
            tensors |= {f"{node}.second": sums.gram.cpu(), f"{node}.first": sums.sums.cpu()}
    return tensors, {node: [owner[id(sums)], sums.tokens] for node, sums in moments.items()}


def from_tensors(tensors: Mapping[str, Tensor], table: Mapping[str, Any]) -> dict[str, Moments]:
    """Moments from the result of `to_tensors`."""
    moments = dict[str, Moments]()
    for node, (owner, tokens) in table.items():
        own = Moments(tensors[f"{owner}.second"], tensors[f"{owner}.first"], tokens) if owner == node else None
        moments[node] = own or moments[owner]
    return moments


@dataclass(frozen=True)
class Statistics:
    """Fact: the moments at every watched consumer, by the name of its node."""

    moments: dict[str, Moments]


@dataclass(frozen=True)
class FullMoments:
    """Fact: the statistics hold whole Gram matrices, not only their diagonals."""


@dataclass(frozen=True)
class ProducerMoments:
    """Fact: the statistics also hold moments at the layers that produce a group."""


@dataclass(frozen=True)
class ParameterGradients:
    """Fact: the gradients of parameters and masks are known."""


@dataclass(frozen=True)
class OutputGradients:
    """Fact: the gradients at the outputs of layers that contract a group are known."""


@dataclass(frozen=True)
class FactorGradients:
    """Fact: the gradients at the outputs of all layers that can be factorized are known."""


#: The fields of `GradientSums` that are tensors by name.
TENSOR_FIELDS = ("sums", "squares", "masks", "output_grams", "input_grams", "routed")


@dataclass(frozen=True)
class GradientSums:
    """Fact: sums of the gradients of a loss over calibration batches; `batches` is their number.

    For every parameter of an eligible group, by name, `sums` has the sum of gradients and `squares` that of their
    squares. `masks` has, for every group, the sum of the squared derivatives by a factor on each index, shape (rows,
    size), which is the diagonal of the empirical Fisher information. `output_grams` has, by the node of a linear layer
    that contracts such a group, the mean over tokens of G G^T, shape (m, m), where G are the gradients at its outputs,
    up to a factor that is equal for all layers. `input_grams` has, by the node of a head of an embedding table, the
    mean over tokens of X X^T, shape (n, n), where X are its inputs. `input_moments` has, by the key of a linear layer
    at whose outputs gradients are known, the moments of its inputs, in which a token counts by the energy of its
    gradients, relative to the mean. `routed` has, for every group of experts, the sum over the rows of each
    expert of the squared derivative by a factor on the row, shape (rows, size). The loss of a batch is the mean of so
    many `terms`; `own` is whether it is that by which plans are judged (see `Objective`), not one that was set from
    Python.
    """

    sums: Mapping[str, Tensor]
    squares: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    batches: int
    output_grams: Mapping[str, Tensor] = field(default_factory=dict)
    input_grams: Mapping[str, Tensor] = field(default_factory=dict)
    input_moments: Mapping[str, Moments] = field(default_factory=dict)
    routed: Mapping[str, Tensor] = field(default_factory=dict)
    terms: float = 1.0
    own: bool = True

    @classmethod
    def joined(cls, parts: Sequence["GradientSums"]) -> "GradientSums":
        """Sums by the names of all parts, of which each has its own; all else is that of the first."""
        by_field: dict[str, Any] = {
            name: {key: value for part in parts for key, value in getattr(part, name).items()}
            for name in (*TENSOR_FIELDS, "input_moments")
        }
        return replace(parts[0], **by_field)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Sums as tensors by name, and a table for JSON of all else."""
        moments, owners = to_tensors(self.input_moments)
        by_field = {**{name: getattr(self, name) for name in TENSOR_FIELDS}, "input_moments": moments}
        tensors = {f"{kind} {name}": value.cpu() for kind, values in by_field.items() for name, value in values.items()}
        return tensors, {"batches": self.batches, "terms": self.terms, "own": self.own, "owners": owners}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], table: Mapping[str, Any]) -> "GradientSums":
        """Sums from the result of `to_tensors`."""
        by_field: dict[str, Any] = {name: {} for name in (*TENSOR_FIELDS, "input_moments")}
        for text, tensor in tensors.items():
            kind, name = text.split(" ", 1)
            by_field[kind][name] = tensor
        by_field["input_moments"] = from_tensors(by_field["input_moments"], table["owners"])
        return cls(**by_field, batches=table["batches"], terms=table["terms"], own=table["own"])
