"""Groups of rows of a matrix, each of its own low rank: the least growth of the loss, and pivoted factors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graphprune.ir.program import Program, Rewritten
from graphprune.ir.weights import Narrowed, Weights
from graphprune.solvers.normal_equations import damped_cholesky
from graphprune.solvers.pivoted_factors import exact_factors, factor_parameters

DAMPING = 1e-4  # of the mean diagonal of the metric of columns
GREATEST = 0.9  # share of the full rank; ranks near it save too little for two products


@dataclass(frozen=True)
class GroupedRows:
    """The rows of a matrix in groups, and the rank of each: rows ``order[start:end]`` of a group.

    `order` has shape (rows,). A rank of the number of columns, or of the rows of the group, changes nothing.
    """

    order: Tensor
    sizes: tuple[int, ...]
    ranks: tuple[int, ...]

    @property
    def parts(self) -> list[Tensor]:
        """The rows of every group."""
        return list(torch.split(self.order, list(self.sizes)))


@dataclass(frozen=True)
class Spectra:
    """The growth of the loss by the rank of every group of rows of a matrix W, shape (rows, columns).

    Row v is changed by d at a cost of ``1/2 f_v d M d^T``, with the frequency f_v of the row, and the metric M of the
    columns. So a group is projected on the leading eigenvectors of ``L^T (sum f_v w_v^T w_v) L``, where ``L L^T = M``.
    `growth` has, for every group, the cost at all ranks from 0 on.
    """

    order: Tensor
    sizes: tuple[int, ...]
    half: Tensor
    vectors: Sequence[Tensor] = field(repr=False)
    growth: Sequence[Tensor] = field(repr=False)

    @classmethod
    def of(cls, weight: Tensor, order: Tensor, sizes: Sequence[int], frequency: Tensor, metric: Tensor) -> "Spectra":
        """The spectra of groups of rows in `order`; `frequency` has shape (rows,), by row of the weight."""
        half = damped_cholesky(metric, DAMPING * float(metric.diagonal().mean()))
        vectors, growth = list[Tensor](), list[Tensor]()
        for rows in torch.split(order, list(sizes)):
            scaled = weight[rows].double() * frequency[rows, None].sqrt()
            values, basis = torch.linalg.eigh(half.T @ (scaled.T @ scaled) @ half)
            values = values.clamp(min=0) / 2
            growth.append(torch.cat([values.new_zeros(1), values.cumsum(0)]).flip(0))
            vectors.append(basis.flip(1))
        return cls(order, tuple(sizes), half, vectors, growth)

    def factors(self, weight: Tensor, group: int, rank: int) -> tuple[Tensor, Tensor]:
        """Factors of the rows of a group, shapes (rows, rank) and (rank, columns)."""
        rows = torch.split(self.order, list(self.sizes))[group]
        basis = self.vectors[group][:, :rank]
        right = torch.linalg.solve_triangular(self.half, basis.T, upper=False, left=False)
        return weight[rows].double() @ (self.half @ basis), right

    def lowered(self, weight: Tensor, ranks: Sequence[int]) -> Tensor:
        """The matrix with these ranks of its groups, in the type of the weight."""
        new = weight.clone()
        for group, (rows, rank) in enumerate(zip(torch.split(self.order, list(self.sizes)), ranks, strict=True)):
            if rank < self.full(group):
                left, right = self.factors(weight, group, rank)
                new[rows] = (left @ right).to(weight.dtype)
        return new

    def full(self, group: int) -> int:
        """The full rank of a group."""
        return min(self.sizes[group], len(self.half))

    def saved(self, ranks: Sequence[int]) -> int:
        """The number of values that these ranks save."""
        return sum(self.saved_by(group, rank) for group, rank in enumerate(ranks))

    def saved_by(self, group: int, rank: int) -> int:
        """The number of values that a rank of one group saves."""
        m, n = self.sizes[group], len(self.half)
        return m * n - factor_parameters(m, n, rank) if rank < self.full(group) else 0

    def cost(self, ranks: Sequence[int]) -> float:
        """The growth of the loss at these ranks."""
        return sum(float(growth[rank]) for growth, rank in zip(self.growth, ranks, strict=True))

    def at(self, multiplier: float) -> list[int]:
        """The ranks with the least growth of the loss plus `multiplier` times the number of values."""
        ranks, n = list[int](), len(self.half)
        for group, growth in enumerate(self.growth):
            full = self.full(group)
            choices = torch.tensor([*range(1, int(GREATEST * full) + 1), full])
            cost = choices * (self.sizes[group] + n - choices)
            cost[-1] = self.sizes[group] * n
            ranks.append(int(choices[(growth[choices] + multiplier * cost).argmin()]))
        return ranks


@dataclass(frozen=True)
class GroupedFactors:
    """A matrix in groups of rows of low ranks: `rows` holds those that are stored, of every group in turn.

    Those of a group of full rank are all its rows; those of another, its pivots, of which its `coefficients`, shape
    (other rows, rank), make its other rows. `starts` has the first pivot of each such group. `order`, shape (rows of
    the matrix,), is the position of each row in the concatenation of the stored rows and the rest of every group.
    """

    rows: Tensor
    coefficients: tuple[Tensor, ...]
    starts: tuple[int, ...]
    order: Tensor

    @classmethod
    def of(cls, weight: Tensor, groups: GroupedRows) -> "GroupedFactors":
        """The factors of a matrix whose groups of rows have these ranks, up to rounding."""
        stored = list[Tensor]()
        kept, others, starts, coefficients = list[Tensor](), list[Tensor](), list[int](), list[Tensor]()
        for rows, rank in zip(groups.parts, groups.ranks, strict=True):
            if rank >= min(len(rows), weight.shape[1]):
                stored.append(weight[rows])
                kept.append(rows)
                continue
            pivoted = exact_factors(weight[rows], rank)
            places = rows[pivoted.order.argsort()]
            starts.append(sum(map(len, stored)))
            stored.append(pivoted.rows)
            coefficients.append(pivoted.coefficients)
            kept.append(places[:rank])
            others.append(places[rank:])
        order = torch.cat([*kept, *others]).argsort()
        return cls(torch.cat(stored), tuple(coefficients), tuple(starts), order)

    @classmethod
    def from_parts(
        cls, weights: Weights, name: str, sizes: Mapping[str, Sequence[tuple[int, int]]]
    ) -> "GroupedFactors":
        """The factors that weights hold; `sizes` has the number of rows and the rank of every group."""
        rows = weights[f"{name}_rows"]
        starts, stored = list[int](), 0
        for count, rank in sizes[name]:
            whole = rank >= min(count, rows.shape[1])
            starts += [] if whole else [stored]
            stored += count if whole else rank
        coefficients = tuple(weights[f"{name}_coefficients_{i}"] for i in range(len(starts)))
        return cls(rows, coefficients, tuple(starts), weights[f"{name}_order"])

    def named(self, weight: str) -> dict[str, Tensor]:
        """The parts, by names that begin with that of the weight."""
        coefficients = {f"{weight}_coefficients_{i}": part for i, part in enumerate(self.coefficients)}
        return {f"{weight}_rows": self.rows, **coefficients, f"{weight}_order": self.order}

    @property
    def product(self) -> Tensor:
        """The whole matrix, in double precision."""
        rows = self.rows.double()
        parts = [
            c.double() @ rows[start : start + c.shape[1]]
            for start, c in zip(self.starts, self.coefficients, strict=True)
        ]
        return torch.cat([rows, *parts])[self.order]


@dataclass(frozen=True)
class TableSpectra:
    """Fact: the spectra of embedding tables, by weight, and the growth of the loss by that which they predict, if it
    was measured."""

    by_weight: Mapping[str, Spectra]
    factor: float | None = None


@dataclass(frozen=True)
class EmbeddingGroups:
    """Fact: the groups of rows of embedding tables, by weight, and the weights at their ranks.

    `saved` is the number of parameters that the factors save. `growth` is the growth of the loss that was predicted,
    `measured` the same as measured, if it was, and `score` the same in the unit of the scores of groups. `left` has the
    reasons for tables that are unchanged.
    """

    by_weight: Mapping[str, GroupedRows]
    lowered: Mapping[str, Tensor] = field(repr=False)
    saved: int
    growth: float = 0.0
    measured: float | None = None
    score: float | None = None
    left: Mapping[str, str] = field(default_factory=dict)

    def lowered_for(self, program: Program) -> Mapping[str, Tensor]:
        """The weights at their ranks, with the columns that the program retains."""
        rewritten = program.facts.get(Rewritten)
        return Narrowed(self.lowered, rewritten.keep) if rewritten else self.lowered

    @property
    def sizes(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """The number of rows and the rank of every group, by weight."""
        return {name: tuple(zip(g.sizes, g.ranks, strict=True)) for name, g in self.by_weight.items()}
