"""Least squares on the kept columns (FASP, arXiv:2501.09412; OSSCAR, arXiv:2403.12983), damped towards the old weights.

With S = X^T X, kept K and removed M: ``W' = W_K + W_M S_MK (S_KK + lambda I)^-1``. In this form damping shrinks the
*correction*; the form ``(W S)_K (S_KK + lambda I)^-1`` would shrink the weights themselves.
"""

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
            damping = min(GRID, key=lambda d: error(w, solve(w, kept, seen.second, d), kept, held_out.second))
        chosen = DEFAULT if damping is None else damping
        everything = seen if held_out is None else seen + held_out
        new = solve(w, kept, everything.second, chosen)
        judge = everything if held_out is None else held_out
        before = error(w, w[:, kept], kept, judge.second)
        return Refitted(new.to(weight.dtype), chosen, before, error(w, new, kept, judge.second))


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


def solve(weight: Tensor, kept: Tensor, second: Tensor, damping: float) -> Tensor:
    """``W_K + W_M S_MK (S_KK + damping mean(diag S) I)^-1``, shape (m, kept)."""
    removed = torch.ones(second.shape[0], dtype=torch.bool)
    removed[kept] = False
    # A floor keeps the factorisation possible where no token ever reached a feature.
    ridge = max(damping * float(second.diagonal().mean()), torch.finfo(second.dtype).tiny ** 0.5)
    inner = second[kept][:, kept] + ridge * torch.eye(len(kept), dtype=second.dtype)
    factor = torch.linalg.cholesky(inner)
    cross = weight[:, removed] @ second[removed][:, kept]
    return weight[:, kept] + torch.cholesky_solve(cross.T, factor).T


def error(weight: Tensor, new: Tensor, kept: Tensor, second: Tensor) -> float:
    """``||W X - W' X_K||^2 / ||W X||^2``."""
    difference = weight.clone()
    difference[:, kept] -= new
    whole = ((weight @ second) * weight).sum()
    return float(((difference @ second) * difference).sum() / whole.clamp_min(torch.finfo(whole.dtype).tiny))
