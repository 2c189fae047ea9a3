"""Mask tuning (Kwon et al., arXiv:2204.09656; COMP, arXiv:2501.15255): one factor for every retained column.

``A m = r`` with ``A = (W_K^T W_K) * H_KK`` and ``r_j = sum_i (W^T W * H)_ji`` over all i, with the Gram matrix
``H = X X^T`` and element-wise products. The authors run LSMR, damped around 1; here the damped system is solved
directly, for ``m - 1``. The factors are fused into the columns, so that inference costs nothing.
"""

from torch import Tensor

from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.planning.interfaces import Reconstruction, Refitted
from graphprune.solvers.normal_equations import NormalEquations, reconstruct, ridge_solve
from graphprune.statistics.moments import Moments


class Mask(Reconstruction):
    """Minimize ||W X - W_K diag(m) X_K|| over m."""

    def refit(
        self, weight: Tensor, retained: Tensor, moments: Moments, held_out: Moments | None, damping: float | None
    ) -> Refitted:
        """The columns `retained` of a matrix of shape (m, n), each times a factor."""
        return reconstruct(
            weight,
            retained,
            moments,
            held_out,
            damping,
            lambda system, d: (system.retained_weight * (factors(system, d) - 1), None),
        )


def factors(system: NormalEquations, damping: float) -> Tensor:
    """The factors of the retained columns, shape (k,); `damping` is relative to the mean of the diagonal of A."""
    matrix = (system.retained_weight.T @ system.retained_weight) * system.gram
    right = (system.retained_weight * system.cross).sum(0)
    amount = damping * float(matrix.diagonal().mean())
    return 1 + ridge_solve(matrix, right[:, None], amount)[:, 0]


RECONSTRUCTIONS.register("mask")(Mask())
