"""LIAR (arXiv:2407.13331): removed inputs are interpolated from retained ones, with an intercept.

The estimator is a reconstruction from the abstract: the linear regression of x_M on x_K. With the covariance C and the
mean mu of the inputs, ``Q = C_MK (C_KK + lambda I)^-1`` and ``p = mu_M - Q mu_K`` give ``W' = W_K + W_M Q`` and
``b' = b + W_M p``.
"""

from torch import Tensor

from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.planning.interfaces import Reconstruction, Refitted
from graphprune.solvers.normal_equations import NormalEquations, reconstruct
from graphprune.statistics.moments import Moments


class Affine(Reconstruction):
    """Minimize ||W X - W' X_K - b|| over W' and b; the bias is not damped."""

    adds_bias = True

    def refit(
        self, weight: Tensor, retained: Tensor, moments: Moments, held_out: Moments | None, damping: float | None
    ) -> Refitted:
        """New values of the columns `retained` of a matrix of shape (m, n), and a bias of shape (m,)."""
        return reconstruct(weight, retained, moments, held_out, damping, _interpolate)


def _interpolate(system: NormalEquations, damping: float) -> tuple[Tensor, Tensor]:
    correction = system.centered.correction(damping)
    return correction, system.bias(correction)


RECONSTRUCTIONS.register("affine")(Affine())
