"""Least squares on the kept columns (FASP, arXiv:2501.09412; OSSCAR, arXiv:2403.12983), damped towards the old weights.

With S = X^T X, kept K and removed M: ``W' = W_K + W_M S_MK (S_KK + lambda I)^-1``. In this form damping shrinks the
*correction*; the form ``(W S)_K (S_KK + lambda I)^-1`` would shrink the weights themselves.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.methods import Reconstruction, Refitted
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.statistics import Moments

GRID = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 10.0)  # of the mean of the diagonal of S
DEFAULT = 1e-2


class LeastSquares(Reconstruction):
    """Minimise ||W X - W' X_K|| over W'; the damping is the best of a grid on held-out tokens."""

    def refit(
        self, weight: Tensor, kept: Tensor, seen: Moments, held_out: Moments | None, damping: float | None
    ) -> Refitted:
        """New values for the columns `kept` of a matrix of shape (m, n), from the moments of its n inputs."""
        w = weight.double()
        if damping is None and held_out is not None:
            fit, judge = Equations.of(w, kept, seen.second), Equations.of(w, kept, held_out.second)
            damping = min(GRID, key=lambda d: judge.error(fit.correction(d)))
        chosen = DEFAULT if damping is None else damping
        everything = Equations.of(w, kept, (seen if held_out is None else seen + held_out).second)
        correction = everything.correction(chosen)
        judge = everything if held_out is None else Equations.of(w, kept, held_out.second)
        errors = judge.removed / judge.whole, judge.error(correction) / judge.whole
        return Refitted((w[:, kept] + correction).to(weight.dtype), chosen, *errors)


class Keep(Reconstruction):
    """No refit: what is left keeps its weights."""

    def refit(
        self, weight: Tensor, kept: Tensor, seen: Moments, held_out: Moments | None, damping: float | None
    ) -> Refitted:
        """The columns as they are."""
        w = weight.double()
        lost = error(w, w[:, kept], kept, (held_out or seen).second)
        return Refitted(weight[:, kept], 0.0, lost, lost)


RECONSTRUCTIONS.register("least-squares")(LeastSquares())
RECONSTRUCTIONS.register("none")(Keep())


@dataclass(frozen=True)
class Equations:
    """The normal equations of a correction C to the kept columns, shape (m, kept).

    `inner` is S_KK, `cross` W_M S_MK; `removed` is ||W_M X_M||^2, the error without correction, and `whole`
    ||W X||^2. `unit` is the mean of the diagonal of S, in which the damping is measured.
    """

    inner: Tensor
    cross: Tensor
    removed: float
    whole: float
    unit: float

    @classmethod
    def of(cls, weight: Tensor, kept: Tensor, second: Tensor) -> "Equations":
        """The equations for a matrix of shape (m, n) and the second moment of its n inputs."""
        gone = torch.ones(second.shape[0], dtype=torch.bool)
        gone[kept] = False
        rest = weight[:, gone]
        rows = rest @ second[gone]
        removed = float((rows[:, gone] * rest).sum())
        whole = float(((weight @ second) * weight).sum())
        tiny = torch.finfo(second.dtype).tiny
        return cls(second[kept][:, kept], rows[:, kept], removed, max(whole, tiny), float(second.diagonal().mean()))

    def correction(self, damping: float) -> Tensor:
        """``W_M S_MK (S_KK + damping unit I)^-1``"""
        # A floor keeps the factorisation possible where no token ever reached a feature.
        ridge = max(damping * self.unit, torch.finfo(self.inner.dtype).tiny ** 0.5)
        factor = torch.linalg.cholesky(self.inner + ridge * torch.eye(len(self.inner), dtype=self.inner.dtype))
        return torch.cholesky_solve(self.cross.T, factor).T

    def error(self, correction: Tensor) -> float:
        """``||W_M X_M - C X_K||^2``"""
        return self.removed + float((correction * (correction @ self.inner - 2 * self.cross)).sum())


def solve(weight: Tensor, kept: Tensor, second: Tensor, damping: float) -> Tensor:
    """``W_K + W_M S_MK (S_KK + damping mean(diag S) I)^-1``, shape (m, kept)."""
    return weight[:, kept] + Equations.of(weight, kept, second).correction(damping)


def error(weight: Tensor, new: Tensor, kept: Tensor, second: Tensor) -> float:
    """``||W X - W' X_K||^2 / ||W X||^2``."""
    equations = Equations.of(weight, kept, second)
    return equations.error(new - weight[:, kept]) / equations.whole
