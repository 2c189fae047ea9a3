"""The equations behind every refit: how the outputs of a linear map change when columns go and others take over.

W (m, n) reads inputs X (n, T); columns K stay, M go. The refitted map makes ``(W_K + C) X_K + b``, and should make
``W X + D``, where the drift D is zero but for a refit that aims at other outputs than those of its inputs. All errors
are quadratic in C and b, so that the sums over tokens say everything.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from graphprune.planning.interfaces import Refitted
from graphprune.statistics.moments import Moments
from graphprune.support.workspace import zeros

DAMPINGS = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 10.0)  # dampings, of the mean of the diagonal
DEFAULT_DAMPING = 1e-2
SINGLE_PRECISION_FROM = (
    1 << 35
)  # multiplications, for which single precision is taken where it suffices: double takes twice as long
SKETCH_ROWS = 32  # random sums of the outputs of a map, by which dampings are compared
#: Shares of the mean of the diagonal by which second moments of inputs and of gradients are shrunk towards multiples of
#: the identity where the growth of the loss says what goes: so what matters in other texts is spared, too.
CAUTIOUS_DAMPINGS = 0.1, 1.0


@dataclass(frozen=True)
class NormalEquations:
    """The normal equations of a correction C to the kept columns, shape (m, kept).

    R = W X + D - W_K X_K is what is missing: `inner` is X_K X_K^T, `cross` R X_K^T, and `removed` ||R||^2, the error
    without correction. `gone` is ||W X||^2 - ||W_K X_K||^2. `missing`, shape (m,), and `inputs`, shape (kept,), are the
    sums of R and X_K over the `tokens`. `unit` is the mean of the diagonal of X X^T.
    """

    weight: Tensor
    retained: Tensor
    gram: Tensor
    cross: Tensor
    initial_error: float
    energy_loss: float
    residual_sum: Tensor
    input_sum: Tensor
    tokens: int
    mean_diagonal: float

    @classmethod
    def of(cls, weight: Tensor, kept: Tensor, moments: Moments) -> "NormalEquations":
        """The equations for a matrix of shape (m, n), in double precision, and the moments of its n inputs."""
        second, drift = moments.gram, moments.drift
        lost = torch.ones(second.shape[0], dtype=torch.bool, device=second.device)
        lost[kept] = False
        rest = weight[:, lost]
        rows = rest @ second[lost]
        removed, cross, missing = (rows[:, lost] * rest).sum(), rows[:, kept], rest @ moments.sums[lost]
        del rows
        gone = removed + 2 * (cross * weight[:, kept]).sum()
        if drift is not None:
            removed = removed + 2 * (drift.cross[:, lost] * rest).sum() + drift.squares.sum()
            cross, missing = cross + drift.cross[:, kept], missing + drift.sums
        unit = float(second.diagonal().mean())
        inner = zeros(len(kept), len(kept), device=second.device)
        torch.index_select(second.index_select(0, kept), 1, kept, out=inner)
        return cls(
            weight, kept, inner, cross, float(removed), float(gone), missing, moments.sums[kept], moments.tokens, unit
        )

    def sketched(self, count: int) -> "NormalEquations":
        """Those of so many sums of all outputs with random signs: on average their squares add up to those of all
        outputs (Hutchinson, 1990, doi:10.1080/03610919008812866). The same signs for all equations of a map."""
        if count >= len(self.cross):
            return self
        coins = torch.randint(2, (count, len(self.cross)), generator=torch.Generator().manual_seed(0))
        signs = (2 * coins - 1).to(self.cross) / count**0.5
        return replace(
            self, weight=signs @ self.weight, cross=signs @ self.cross, residual_sum=signs @ self.residual_sum
        )

    @cached_property
    def output_energy(self) -> float:
        """``||W X||^2``, of which errors are shares."""
        return max(self.energy_loss + _quadratic(self.retained_weight, self.gram), torch.finfo(self.gram.dtype).tiny)

    @property
    def retained_weight(self) -> Tensor:
        """W_K, shape (m, kept)."""
        return self.weight[:, self.retained]

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        """Those of both sets of tokens, for the same map."""
        return NormalEquations(
            self.weight, self.retained, _sum(self.gram, other.gram), self.cross + other.cross,
            self.initial_error + other.initial_error, self.energy_loss + other.energy_loss,
            self.residual_sum + other.residual_sum, self.input_sum + other.input_sum, self.tokens + other.tokens,
            self.mean_diagonal + other.mean_diagonal,
        )  # fmt: skip

    @cached_property
    def centered(self) -> "NormalEquations":
        """The same after the best bias has been taken out of everything."""
        count = max(self.tokens, 1)
        inner = self.gram - self.input_sum.outer(self.input_sum) / count
        cross = self.cross - self.residual_sum.outer(self.input_sum) / count
        removed = self.initial_error - float(self.residual_sum.square().sum()) / count
        nothing = torch.zeros_like(self.residual_sum), torch.zeros_like(self.input_sum)
        return replace(
            self,
            gram=inner,
            cross=cross,
            initial_error=max(removed, 0.0),
            residual_sum=nothing[0],
            input_sum=nothing[1],
        )

    def correction(self, damping: float) -> Tensor:
        """``R X_K^T (X_K X_K^T + damping unit I)^-1``"""
        return ridge_solve(self.gram, self.cross.T, damping * self.mean_diagonal).T

    def bias(self, correction: Tensor) -> Tensor:
        """The mean of what is missing after a correction, shape (m,)."""
        return (self.residual_sum - correction @ self.input_sum) / max(self.tokens, 1)

    def error(self, correction: Tensor, bias: Tensor | None = None) -> float:
        """``||R - C X_K - b||^2``"""
        found = self.initial_error + _quadratic(correction, self.gram) - 2 * float((correction * self.cross).sum())
        if bias is None:
            return found
        left = self.residual_sum - correction @ self.input_sum
        return found + float((bias * (self.tokens * bias - 2 * left)).sum())


def _sum(a: Tensor, b: Tensor) -> Tensor:
    """The sum, where sums of that size lie."""
    return torch.add(a, b, out=zeros(*a.shape, device=a.device))


def _quadratic(rows: Tensor, matrix: Tensor) -> float:
    """The trace of ``rows matrix rows^T``, a sum of squares: rounding in single precision hardly moves it."""
    wide = rows.float() if len(rows) * matrix.numel() > SINGLE_PRECISION_FROM else rows
    return float((wide @ matrix.to(wide)).mul_(wide).sum(dtype=torch.float64))


def add_damping(matrix: Tensor, share: float) -> Tensor:
    """A matrix of second moments with that share of the mean of its diagonal, or a trifle, added to the diagonal."""
    amount = max(share * float(matrix.diagonal().mean()), torch.finfo(matrix.dtype).tiny ** 0.5)
    found = matrix.clone()
    found.diagonal().add_(amount)
    return found


def ridge_solve(matrix: Tensor, right: Tensor, amount: float) -> Tensor:
    """``(matrix + amount I)^-1 right``, for a matrix without negative eigenvalues."""
    factor = damped_cholesky(matrix, amount)
    half = torch.linalg.solve_triangular(factor, right, upper=False)  # unlike cholesky_solve they copy no factor
    found: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return found


def damped_cholesky(matrix: Tensor, amount: float) -> Tensor:
    """The lower triangular square root of ``matrix + amount I``, for a matrix without negative eigenvalues."""
    # A floor keeps the factorisation possible where no token ever reached a feature, more of it where rounding
    # of products in single precision made eigenvalues negative.
    precision = torch.finfo(matrix.dtype)
    amount, least = max(amount, precision.tiny**0.5), precision.eps * float(matrix.diagonal().mean())
    factor, failed = _root(matrix, amount)
    while failed and amount < float(matrix.diagonal().sum()):
        amount = max(10 * amount, least)
        factor, failed = _root(matrix, amount)
    return factor


def _root(matrix: Tensor, amount: float) -> tuple[Tensor, bool]:
    """The root, if that can be told, and whether it cannot; large matrices are copied once, and no more."""
    factor = matrix.mT.contiguous().mT  # LAPACK wants columns, and would copy rows
    factor.diagonal().add_(amount)
    failed = torch.zeros((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(factor, out=(factor, failed))
    return factor, bool(failed)


#: From the equations and a damping to a correction, and a bias if there is one.
Fit = Callable[[NormalEquations, float], tuple[Tensor, Tensor | None]]


def choose_damping(
    w: Tensor, kept: Tensor, seen: Moments, held_out: Moments | None, damping: float | None,
    error: Callable[[NormalEquations, NormalEquations, float], float], outputs: int | None = None,
) -> tuple[NormalEquations, NormalEquations, float]:  # fmt: skip
    """The equations of all tokens, those that judge, and the damping: the one given, or that with the lowest `error`
    of a fit to the first equations by the second, those of held-out tokens; with none held out it is `DEFAULT`. With
    `outputs`, only so many sums of outputs are compared, since each damping takes a solution for all that are."""
    everything = NormalEquations.of(w, kept, seen)
    if held_out is None:
        return everything, everything, DEFAULT_DAMPING if damping is None else damping
    judge = NormalEquations.of(w, kept, held_out)
    if damping is None:
        some = [system.sketched(outputs or len(system.cross)) for system in (everything, judge)]
        damping = min(DAMPINGS, key=lambda d: error(some[0], some[1], d))
    return everything + judge, judge, damping


def reconstruct(
    weight: Tensor, kept: Tensor, seen: Moments, held_out: Moments | None, damping: float | None, fit: Fit
) -> Refitted:
    """Fit with the damping that is best on held-out tokens, to all tokens; errors are those on held-out ones.

    With no `damping` given and none held out it is `DEFAULT`.
    """
    w = weight.double()

    def error(tried: NormalEquations, judge: NormalEquations, d: float) -> float:
        return judge.error(*fit(tried, d))

    everything, judge, chosen = choose_damping(w, kept, seen, held_out, damping, error, SKETCH_ROWS)
    correction, bias = fit(everything, chosen)
    errors = judge.initial_error / judge.output_energy, judge.error(correction, bias) / judge.output_energy
    new = (w[:, kept] + correction).to(weight.dtype)
    return Refitted(new, chosen, *errors, bias if bias is None else bias.to(weight.dtype))
