"""Least squares on the retained columns (FASP, arXiv:2501.09412; OSSCAR, arXiv:2403.12983), damped to the old weights.

With the Gram matrix ``H = X X^T`` of the inputs, retained columns K and removed columns M:
``W' = W_K + W_M H_MK (H_KK + lambda I)^-1``. In this form damping shrinks the *correction*; the form
``(W H)_K (H_KK + lambda I)^-1`` would shrink the weights themselves. Optimal Brain Surgeon's updates, applied to one
column after the other, have the same result (OBSPA, arXiv:2403.18955): ``obs`` is another name of this method.
"""

from torch import Tensor

from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.planning.interfaces import Reconstruction, Refitted
from graphprune.solvers.normal_equations import NormalEquations, reconstruct
from graphprune.statistics.moments import Moments


class LeastSquares(Reconstruction):
    """Minimize ||W X - W' X_K|| over W'; the damping is the best of a grid on held-out tokens."""

    def refit(
        self, weight: Tensor, retained: Tensor, moments: Moments, held_out: Moments | None, damping: float | None
    ) -> Refitted:
        """New values of the columns `retained` of a matrix of shape (m, n), from the moments of its n inputs."""
        return reconstruct(weight, retained, moments, held_out, damping, lambda system, d: (system.correction(d), None))


class Keep(Reconstruction):
    """No refit: retained weights are unchanged."""

    def refit(
        self, weight: Tensor, retained: Tensor, moments: Moments, held_out: Moments | None, damping: float | None
    ) -> Refitted:
        """The retained columns unchanged."""
        system = NormalEquations.of(weight.double(), retained, held_out or moments)
        error = system.initial_error / system.output_energy
        return Refitted(weight[:, retained], 0.0, error, error)


RECONSTRUCTIONS.register("least-squares")(LeastSquares())
RECONSTRUCTIONS.register("obs")(LeastSquares())
RECONSTRUCTIONS.register("none")(Keep())
