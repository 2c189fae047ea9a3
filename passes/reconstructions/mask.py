"""Mask tuning (Kwon et al., arXiv:2204.09656; COMP, arXiv:2501.15255): every kept column gets one factor.

``A m = r`` with ``A = (W_K^T W_K) * S_KK`` and ``r_j = sum_i (W^T W * S)_ji`` over all i, element-wise products. The
authors run LSMR, damped around 1; here the damped system is solved outright, for ``m - 1``. Folded into the columns,
the factors cost nothing when the model runs.
"""

from torch import Tensor

from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.planning.interfaces import Reconstruction, Refitted
from graphprune.solvers.normal_equations import NormalEquations, reconstruct, ridge_solve
from graphprune.statistics.moments import Moments


class Mask(Reconstruction):
    """Minimise ||W X - W_K diag(m) X_K|| over m."""

    def refit(
        self, weight: Tensor, kept: Tensor, seen: Moments, held_out: Moments | None, damping: float | None
    ) -> Refitted:
        """The columns `kept` of a matrix of shape (m, n), each times a factor."""
        return reconstruct(
            weight,
            kept,
            seen,
            held_out,
            damping,
            lambda system, d: (system.retained_weight * (factors(system, d) - 1), None),
        )


def factors(system: NormalEquations, damping: float) -> Tensor:
    """The factors of the kept columns, shape (kept,); `damping` is relative to the mean of the diagonal of A."""
    matrix = (system.retained_weight.T @ system.retained_weight) * system.gram
    right = (system.retained_weight * system.cross).sum(0)
    amount = damping * float(matrix.diagonal().mean())
    return 1 + ridge_solve(matrix, right[:, None], amount)[:, 0]


RECONSTRUCTIONS.register("mask")(Mask())
