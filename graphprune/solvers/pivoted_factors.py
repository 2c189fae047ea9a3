"""Low rank: a matrix as some of its rows and what the others are made of them, fitted to what a linear map sees."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isqrt

import torch
from torch import Tensor

from graphprune.planning.interfaces import Refitted
from graphprune.solvers.normal_equations import NormalEquations, choose_damping, damped_cholesky, ridge_solve
from graphprune.statistics.moments import Moments

Factors = tuple[Tensor, Tensor]  # of shapes (m, r) and (r, n)
#: From equations for all columns, a rank and a damping to the factors of the new matrix.
Fit = Callable[[NormalEquations, int, float], Factors]


@dataclass(frozen=True)
class Pivoted:
    """A matrix of rank r, shape (m, n), by pivoting factorisation (PIFA, arXiv:2501.19090).

    `rows`, shape (r, n), are rows of it; the others are `coefficients`, shape (m - r, r), times those. `order`, shape
    (m,), says where each row of the matrix stands among the former and, behind them, the latter.
    """

    rows: Tensor
    coefficients: Tensor
    order: Tensor

    @classmethod
    def of(cls, left: Tensor, right: Tensor) -> "Pivoted":
        """The product of two matrices of shapes (m, r) and (r, n), its rows picked by LU with pivoting."""
        rank, (m, _) = left.shape[1], left.shape
        _, swaps, _ = torch.linalg.lu_factor_ex(left)
        places = list(range(m))
        for i, j in enumerate(int(swap) - 1 for swap in swaps):
            places[i], places[j] = places[j], places[i]
        chosen = torch.tensor(places)
        picked, rest = left[chosen[:rank]], left[chosen[rank:]]
        # picked rows may depend on each other, if the rank is lower than it was asked to be
        return cls(picked @ right, rest @ torch.linalg.pinv(picked), chosen.argsort())

    def to(self, dtype: torch.dtype) -> "Pivoted":
        """The same in another precision."""
        return replace(self, rows=self.rows.to(dtype), coefficients=self.coefficients.to(dtype))

    @property
    def product(self) -> Tensor:
        """The matrix itself, in double precision."""
        rows = self.rows.double()
        return torch.cat([rows, self.coefficients.double() @ rows])[self.order]


def factor_parameters(m: int, n: int, rank: int) -> int:
    """The numbers that a pivoted matrix holds, its order aside; as many as the matrix itself at full rank."""
    return rank * (m + n - rank)


def rank_for_density(m: int, n: int, density: float, step: int = 1) -> int:
    """The greatest rank, a multiple of `step` or the full one, at which no greater share of the numbers is held."""
    most, allowed = min(m, n), int(density * m * n)
    if allowed >= m * n:
        return most
    rank = (m + n - isqrt((m + n) ** 2 - 4 * allowed)) // 2
    rank -= factor_parameters(m, n, rank) > allowed
    return max(min(rank, most - 1) // step * step, min(step, most))


def reduced_rank_regression(equations: NormalEquations, rank: int, damping: float) -> Factors:
    """The best matrix of a rank, by reduced-rank regression.

    With S' the damped second moment and L the best matrix of full rank, the error of M lies ``||(M - L) S'^(1/2)||^2``
    above that of L. So it is the singular values of ``L S'^(1/2)`` that are truncated; where the aim is what the layer
    makes, L is its weight. Any square root of S' does.
    """
    best, half = _best(equations, damping)
    left = leading_left_vectors(best @ half, rank)
    return left, left.T @ best


def leading_left_vectors(matrix: Tensor, rank: int) -> Tensor:
    """The left singular vectors of the greatest singular values, shape (m, rank), by eigenvectors of the smaller of
    both products with the transposed, which takes a fraction of the time."""
    m, n = matrix.shape
    small = matrix @ matrix.T if m <= n else matrix.T @ matrix
    vectors: Tensor = torch.linalg.eigh(small).eigenvectors[:, -rank:].flip(1)
    return vectors if m <= n else torch.linalg.qr(matrix @ vectors).Q


def alternating_least_squares(rounds: int) -> Fit:
    """Whitened truncation of the weight, then rounds of least squares, of the left factor and of the right one, to
    what the layer shall make (MPIFA, arXiv:2501.19090); their limit is the reduced-rank regression."""

    def fit(equations: NormalEquations, rank: int, damping: float) -> Factors:
        best, half = _best(equations, damping)
        left = leading_left_vectors(equations.retained_weight @ half, rank)
        right = left.T @ equations.retained_weight
        for _ in range(rounds):
            seen = right @ half
            left = ridge_solve(seen @ seen.T, seen @ (best @ half).T, 0.0).T
            right = torch.linalg.lstsq(left, best).solution
        return left, right

    return fit


def _best(equations: NormalEquations, damping: float) -> Factors:
    """The best matrix of full rank, and a root of the damped second moment."""
    best = equations.retained_weight + equations.correction(damping)
    return best, damped_cholesky(equations.gram, damping * equations.mean_diagonal)


def exact_factors(weight: Tensor, rank: int) -> Pivoted:
    """A matrix that has that rank, but for rounding, as its factors."""
    w = weight.double()
    left = leading_left_vectors(w, rank)
    return Pivoted.of(left, left.T @ w).to(weight.dtype)


def reconstruct_low_rank(
    weight: Tensor, kept: Tensor, rank: int, seen: Moments, held_out: Moments | None, damping: float | None, fit: Fit
) -> tuple[Pivoted, Refitted]:
    """A matrix of a rank in the place of the `kept` columns of a weight, shape (m, n), from moments of its n inputs;
    and what that did.

    With no `damping` given it is that with the least error on held-out tokens, or `DEFAULT`.
    """
    w = weight.double()

    def missed(tried: NormalEquations, judge: NormalEquations, d: float) -> float:
        left, right = fit(tried, rank, d)
        return judge.error(left @ right - judge.retained_weight)

    everything, judge, chosen = choose_damping(w, kept, seen, held_out, damping, missed)
    pivoted = Pivoted.of(*fit(everything, rank, chosen)).to(weight.dtype)
    new = pivoted.product
    error = judge.error(new - w[:, kept]) / judge.output_energy
    return pivoted, Refitted(new.to(weight.dtype), chosen, judge.initial_error / judge.output_energy, error)
