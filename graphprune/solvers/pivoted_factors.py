"""Low-rank matrices in pivoted form: some rows, and coefficients that make the other rows of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isqrt

import torch
from torch import Tensor

from graphprune.planning.interfaces import Refitted
from graphprune.solvers.normal_equations import NormalEquations, choose_damping, damped_cholesky, ridge_solve
from graphprune.statistics.moments import Moments

Factors = tuple[Tensor, Tensor]  # of shapes (m, r) and (r, n)
#: Function from equations for all columns, a rank and a damping to the factors of the new matrix.
Fit = Callable[[NormalEquations, int, float], Factors]


@dataclass(frozen=True)
class Pivoted:
    """Matrix of rank r, shape (m, n), by pivoting factorization (PIFA, arXiv:2501.19090).

    `rows`, shape (r, n), are rows of the matrix; `coefficients`, shape (m - r, r), times `rows` are the others.
    `order`, shape (m,), is the position of each row of the matrix in the concatenation of both.
    """

    rows: Tensor
    coefficients: Tensor
    order: Tensor

    @classmethod
    def of(cls, left: Tensor, right: Tensor) -> "Pivoted":
        """Pivoted form of a product of shapes (m, r) and (r, n); LU with pivoting picks the rows."""
        rank, (m, _) = left.shape[1], left.shape
        _, swaps, _ = torch.linalg.lu_factor_ex(left)
        places = list(range(m))
        for i, j in enumerate(int(swap) - 1 for swap in swaps):
            places[i], places[j] = places[j], places[i]
        chosen = torch.tensor(places)
        picked, rest = left[chosen[:rank]], left[chosen[rank:]]
        # the picked rows are linearly dependent if the rank of the product is below r
        return cls(picked @ right, rest @ torch.linalg.pinv(picked), chosen.argsort())

    def to(self, dtype: torch.dtype) -> "Pivoted":
        """Copy in another precision."""
        return replace(self, rows=self.rows.to(dtype), coefficients=self.coefficients.to(dtype))

    @property
    def product(self) -> Tensor:
        """Full matrix, shape (m, n), in double precision."""
        rows = self.rows.double()
        return torch.cat([rows, self.coefficients.double() @ rows])[self.order]


def factor_parameters(m: int, n: int, rank: int) -> int:
    """Number of values in a pivoted matrix, without its order; at full rank, m * n."""
    return rank * (m + n - rank)


def rank_for_density(m: int, n: int, density: float, step: int = 1) -> int:
    """Greatest rank with at most a share `density` of the m * n values; a multiple of `step`, or the full rank."""
    most, allowed = min(m, n), int(density * m * n)
    if allowed >= m * n:
        return most
    rank = (m + n - isqrt((m + n) ** 2 - 4 * allowed)) // 2
    rank -= factor_parameters(m, n, rank) > allowed
    return max(min(rank, most - 1) // step * step, min(step, most))


def reduced_rank_regression(equations: NormalEquations, rank: int, damping: float) -> Factors:
    """Factors of the best matrix of a rank, by reduced-rank regression.

    With H' the damped Gram matrix of the inputs and L the best matrix of full rank, the error of M exceeds that of L by
    ``||(M - L) H'^(1/2)||^2``. So the singular values of ``L H'^(1/2)`` are truncated, for any square root of H'.
    Without drift, L is the weight.
    """
    best, half = _best(equations, damping)
    left = leading_left_vectors(best @ half, rank)
    return left, left.T @ best


def weighted_regression(root: Tensor) -> Fit:
    """Reduced-rank regression with errors ``tr(G E H' E^T)``, for a root of the metric ``G = root root^T``, (m, m)."""

    def fit(equations: NormalEquations, rank: int, damping: float) -> Factors:
        best, half = _best(equations, damping)
        left = leading_left_vectors(root.T @ best @ half, rank)
        return torch.linalg.solve_triangular(root.T, left, upper=True), left.T @ root.T @ best

    return fit


def leading_left_vectors(matrix: Tensor, rank: int) -> Tensor:
    """Left singular vectors of the greatest singular values, shape (m, rank).

    They come from eigenvectors of the smaller Gram matrix, in a fraction of the time of a singular value decomposition.
    """
    m, n = matrix.shape
    small = matrix @ matrix.T if m <= n else matrix.T @ matrix
    vectors: Tensor = torch.linalg.eigh(small).eigenvectors[:, -rank:].flip(1)
    return vectors if m <= n else torch.linalg.qr(matrix @ vectors).Q


def alternating_least_squares(rounds: int) -> Fit:
    """Whitened truncation of the weight, then rounds of least squares for the left and the right factor in turn.

    This is MPIFA (arXiv:2501.19090). Its limit is the reduced-rank regression.
    """

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
    """Best matrix of full rank, and the Cholesky factor of the damped Gram matrix."""
    best = equations.retained_weight + equations.correction(damping)
    return best, damped_cholesky(equations.gram, damping * equations.mean_diagonal)


def exact_factors(weight: Tensor, rank: int) -> Pivoted:
    """Pivoted form of a matrix that has this rank up to rounding."""
    w = weight.double()
    left = leading_left_vectors(w, rank)
    return Pivoted.of(left, left.T @ w).to(weight.dtype)


def reconstruct_low_rank(
    weight: Tensor,
    retained: Tensor,
    rank: int,
    seen: Moments,
    held_out: Moments | None,
    damping: float | None,
    fit: Fit,
) -> tuple[Pivoted, Refitted]:
    """Low-rank matrix in place of the retained columns of a weight, shape (m, n), and its errors.

    It is fitted to the moments of the n inputs, with the damping of `choose_damping`.
    """
    w = weight.double()

    def error_of(fitted: NormalEquations, judge: NormalEquations, d: float) -> float:
        left, right = fit(fitted, rank, d)
        return judge.error(left @ right - judge.retained_weight)

    everything, judge, chosen = choose_damping(w, retained, seen, held_out, damping, error_of)
    pivoted = Pivoted.of(*fit(everything, rank, chosen)).to(weight.dtype)
    new = pivoted.product
    error = judge.error(new - w[:, retained]) / judge.output_energy
    return pivoted, Refitted(new.to(weight.dtype), chosen, judge.initial_error / judge.output_energy, error)
