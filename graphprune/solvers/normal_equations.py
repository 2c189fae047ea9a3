"""Normal equations of a least-squares refit: the outputs of a linear layer after some of its columns are removed.

W (m, n) reads inputs X (n, T) of T tokens; columns K are retained. The refitted layer computes ``(W_K + C) X_K + b``.
Its target is ``W X + D``; the drift D is zero unless the refit aims at outputs of other inputs. All errors are
quadratic in C and b, so sums over tokens suffice.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from graphprune.axes.rule import Consumer
from graphprune.axes.rule_helpers import reads_positions
from graphprune.planning.interfaces import Refitted
from graphprune.statistics.moments import GradientSums, Moments
from graphprune.support.workspace import zeros

DAMPINGS = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 10.0)  # dampings, of the mean of the diagonal
DEFAULT_DAMPING = 1e-2
#: From this number of multiplications on, single precision is used where it suffices: double takes twice as long.
SINGLE_PRECISION_FROM = 1 << 35
SKETCH_ROWS = 32  # random sums of the outputs of a layer, by which dampings are compared
#: Shares of the mean of the diagonal by which Gram matrices of inputs and of gradients are shrunk towards multiples of
#: the identity where scores estimate the growth of the loss: the greatest ones, and multiples of dimensions per token.
CAUTIOUS_DAMPINGS = 0.1, 1.0
CAUTION = 1.0, 30.0


@dataclass(frozen=True)
class NormalEquations:
    """Normal equations of a correction C to the retained columns, shape (m, retained).

    R = W X + D - W_K X_K is the residual. `gram` is X_K X_K^T, `cross` is R X_K^T, and `initial_error` is ||R||^2, the
    error without a correction. `energy_loss` is ||W X||^2 - ||W_K X_K||^2. `residual_sum`, shape (m,), and `input_sum`,
    shape (retained,), are the sums of R and X_K over the `tokens`. `mean_diagonal` is that of X X^T.
    """

    weight: Tensor
    retained: Tensor
    gram: Tensor
    cross: Tensor
    initial_error: float
    energy_loss: float
    residual_sum: Tensor
    input_sum: Tensor
    tokens: float
    mean_diagonal: float

    @classmethod
    def of(cls, weight: Tensor, retained: Tensor, moments: Moments) -> "NormalEquations":
        """Equations for a matrix of shape (m, n), in double precision, and the moments of its n inputs."""
        full_gram, drift = moments.gram, moments.drift
        removed = torch.ones(full_gram.shape[0], dtype=torch.bool, device=full_gram.device)
        removed[retained] = False
        columns = weight[:, removed]
        rows = columns @ full_gram[removed]
        error, cross, residual_sum = (
            (rows[:, removed] * columns).sum(), rows[:, retained], columns @ moments.sums[removed],
        )  # fmt: skip
        del rows
        energy_loss = error + 2 * (cross * weight[:, retained]).sum()
        if drift is not None:
            error = error + 2 * (drift.cross[:, removed] * columns).sum() + drift.squares.sum()
            cross, residual_sum = cross + drift.cross[:, retained], residual_sum + drift.sums
        mean_diagonal = float(full_gram.diagonal().mean())
        gram = zeros(len(retained), len(retained), device=full_gram.device)
        torch.index_select(full_gram.index_select(0, retained), 1, retained, out=gram)
        return cls(
            weight, retained, gram, cross, float(error), float(energy_loss), residual_sum, moments.sums[retained],
            moments.tokens, mean_diagonal,
        )  # fmt: skip

    def sketched(self, count: int) -> "NormalEquations":
        """Equations of `count` random sums of all outputs, with signs +1 and -1 from one seed.

        On average, the squares of the sums add up to those of all outputs (Hutchinson, 1990,
        doi:10.1080/03610919008812866).
        """
        if count >= len(self.cross):
            return self
        coins = torch.randint(2, (count, len(self.cross)), generator=torch.Generator().manual_seed(0))
        signs = (2 * coins - 1).to(self.cross) / count**0.5
        return replace(
            self, weight=signs @ self.weight, cross=signs @ self.cross, residual_sum=signs @ self.residual_sum
        )

    @cached_property
    def output_energy(self) -> float:
        """``||W X||^2``; errors are shares of it."""
        return max(self.energy_loss + _quadratic(self.retained_weight, self.gram), torch.finfo(self.gram.dtype).tiny)

    @property
    def retained_weight(self) -> Tensor:
        """W_K, shape (m, retained)."""
        return self.weight[:, self.retained]

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        """Equations of both sets of tokens, for the same layer."""
        return NormalEquations(
            self.weight, self.retained, _sum(self.gram, other.gram), self.cross + other.cross,
            self.initial_error + other.initial_error, self.energy_loss + other.energy_loss,
            self.residual_sum + other.residual_sum, self.input_sum + other.input_sum, self.tokens + other.tokens,
            self.mean_diagonal + other.mean_diagonal,
        )  # fmt: skip

    @cached_property
    def centered(self) -> "NormalEquations":
        """Equations of deviations from the mean: the best bias is eliminated."""
        count = self.tokens or 1
        return replace(
            self,
            gram=self.gram - self.input_sum.outer(self.input_sum) / count,
            cross=self.cross - self.residual_sum.outer(self.input_sum) / count,
            initial_error=max(self.initial_error - float(self.residual_sum.square().sum()) / count, 0.0),
            residual_sum=torch.zeros_like(self.residual_sum),
            input_sum=torch.zeros_like(self.input_sum),
        )

    def correction(self, damping: float) -> Tensor:
        """``R X_K^T (X_K X_K^T + damping mean_diagonal I)^-1``, shape (m, retained)."""
        return ridge_solve(self.gram, self.cross.T, damping * self.mean_diagonal).T

    def bias(self, correction: Tensor) -> Tensor:
        """Mean residual after a correction, shape (m,)."""
        return (self.residual_sum - correction @ self.input_sum) / (self.tokens or 1)

    def error(self, correction: Tensor, bias: Tensor | None = None) -> float:
        """``||R - C X_K - b||^2``"""
        error = self.initial_error + _quadratic(correction, self.gram) - 2 * float((correction * self.cross).sum())
        if bias is None:
            return error
        residual_sum = self.residual_sum - correction @ self.input_sum
        return error + float((bias * (self.tokens * bias - 2 * residual_sum)).sum())


def _sum(a: Tensor, b: Tensor) -> Tensor:
    """Sum of two matrices, in memory or in a file, as `zeros` allocates that size."""
    return torch.add(a, b, out=zeros(*a.shape, device=a.device))


def _quadratic(rows: Tensor, matrix: Tensor) -> float:
    """Trace of ``rows matrix rows^T``, a sum of squares that rounding in single precision hardly changes."""
    wide = rows.float() if len(rows) * matrix.numel() > SINGLE_PRECISION_FROM else rows
    return float((wide @ matrix.to(wide)).mul_(wide).sum(dtype=torch.float64))


def add_damping(matrix: Tensor, share: float) -> Tensor:
    """Gram matrix with a share of the mean of its diagonal, but more than zero, added to the diagonal."""
    amount = max(share * float(matrix.diagonal().mean()), torch.finfo(matrix.dtype).tiny ** 0.5)
    damped = matrix.clone()
    damped.diagonal().add_(amount)
    return damped


def cautious_dampings(consumer: Consumer, gathered: GradientSums) -> tuple[float, float]:
    """Shares by which the Gram matrices of the inputs of a layer and of the gradients at its outputs are shrunk.

    The fewer tokens a dimension has, the more they would overfit the calibration text. The rows of a convolution are
    not independent, as tokens almost are; so it has the greatest shares.
    """
    if reads_positions(consumer):
        return CAUTIOUS_DAMPINGS
    moments = gathered.input_moments.get(consumer.key)
    tokens = max(moments.tokens, 1) if moments else 1
    sizes = len(moments.sums) if moments else 1, len(gathered.output_grams[consumer.node])
    inputs, outputs = (
        min(most, times * size / tokens) for most, times, size in zip(CAUTIOUS_DAMPINGS, CAUTION, sizes, strict=True)
    )
    return inputs, outputs


def ridge_solve(matrix: Tensor, right: Tensor, amount: float) -> Tensor:
    """``(matrix + amount I)^-1 right``, for a matrix without negative eigenvalues."""
    factor = damped_cholesky(matrix, amount)
    half = torch.linalg.solve_triangular(factor, right, upper=False)  # cholesky_solve would copy the factor
    solution: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return solution


def damped_cholesky(matrix: Tensor, amount: float) -> Tensor:
    """Lower Cholesky factor of ``matrix + amount I``, for a matrix without negative eigenvalues."""
    # The floor allows a factorization where a feature was always zero. More is needed where rounding of products in
    # single precision made eigenvalues negative.
    precision = torch.finfo(matrix.dtype)
    amount, least = max(amount, precision.tiny**0.5), precision.eps * float(matrix.diagonal().mean())
    factor, failed = _root(matrix, amount)
    while failed and amount < float(matrix.diagonal().sum()):
        amount = max(10 * amount, least)
        factor, failed = _root(matrix, amount)
    return factor


def _root(matrix: Tensor, amount: float) -> tuple[Tensor, bool]:
    """Cholesky factor, and whether the factorization failed; a large matrix is copied only once."""
    factor = matrix.mT.contiguous().mT  # LAPACK wants columns, and would copy rows
    factor.diagonal().add_(amount)
    failed = torch.zeros((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(factor, out=(factor, failed))
    return factor, bool(failed)


#: Function from equations and a damping to a correction, and a bias or None.
Fit = Callable[[NormalEquations, float], tuple[Tensor, Tensor | None]]


def choose_damping(
    w: Tensor, retained: Tensor, seen: Moments, held_out: Moments | None, damping: float | None,
    error: Callable[[NormalEquations, NormalEquations, float], float], outputs: int | None = None,
) -> tuple[NormalEquations, NormalEquations, float]:  # fmt: skip
    """Equations of all tokens, equations of the held-out tokens, and a damping.

    Without a `damping`, take the one with the lowest `error` on held-out tokens after a fit to the others; if no token
    is held out, `DEFAULT_DAMPING`. With `outputs`, that many random sums of outputs are compared instead of all
    outputs, because every damping needs a solution for each of them.
    """
    fitted = NormalEquations.of(w, retained, seen)
    if held_out is None:
        return fitted, fitted, DEFAULT_DAMPING if damping is None else damping
    judge = NormalEquations.of(w, retained, held_out)
    if damping is None:
        sketches = [system.sketched(outputs or len(system.cross)) for system in (fitted, judge)]
        damping = min(DAMPINGS, key=lambda d: error(sketches[0], sketches[1], d))
    return fitted + judge, judge, damping


def reconstruct(
    weight: Tensor, retained: Tensor, seen: Moments, held_out: Moments | None, damping: float | None, fit: Fit
) -> Refitted:
    """Fit the retained columns of a weight, shape (m, n), to all tokens, with the damping of `choose_damping`.

    The errors are measured on held-out tokens, and on all tokens if none is held out.
    """
    w = weight.double()

    def error(fitted: NormalEquations, judge: NormalEquations, d: float) -> float:
        return judge.error(*fit(fitted, d))

    everything, judge, chosen = choose_damping(w, retained, seen, held_out, damping, error, SKETCH_ROWS)
    correction, bias = fit(everything, chosen)
    errors = judge.initial_error / judge.output_energy, judge.error(correction, bias) / judge.output_energy
    new = (w[:, retained] + correction).to(weight.dtype)
    return Refitted(new, chosen, *errors, bias if bias is None else bias.to(weight.dtype))
