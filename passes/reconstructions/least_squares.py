"""Least squares on the kept columns (FASP, arXiv:2501.09412; OSSCAR, arXiv:2403.12983), damped towards the old weights.

With S = X^T X, kept K and removed M: ``W' = W_K + W_M S_MK (S_KK + lambda I)^-1``. In this form damping shrinks the
*correction*; the form ``(W S)_K (S_KK + lambda I)^-1`` would shrink the weights themselves. It is also where Optimal
Brain Surgeon's updates lead, applied to one column after the other (OBSPA, arXiv:2403.18955): ``obs`` is another name
for it.
"""

from torch import Tensor

from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.planning.interfaces import Reconstruction, Refitted
from graphprune.solvers.normal_equations import NormalEquations, reconstruct
from graphprune.statistics.moments import Moments


class LeastSquares(Reconstruction):
    """Minimise ||W X - W' X_K|| over W'; the damping is the best of a grid on held-out tokens."""

    def refit(
        self, weight: Tensor, kept: Tensor, seen: Moments, held_out: Moments | None, damping: float | None
    ) -> Refitted:
        """New values for the columns `kept` of a matrix of shape (m, n), from the moments of its n inputs."""
        return reconstruct(weight, kept, seen, held_out, damping, lambda system, d: (system.correction(d), None))


class Keep(Reconstruction):
    """No refit: what is left keeps its weights."""

    def refit(
        self, weight: Tensor, kept: Tensor, seen: Moments, held_out: Moments | None, damping: float | None
    ) -> Refitted:
        """The columns as they are."""
        system = NormalEquations.of(weight.double(), kept, held_out or seen)
        lost = system.initial_error / system.output_energy
        return Refitted(weight[:, kept], 0.0, lost, lost)


RECONSTRUCTIONS.register("least-squares")(LeastSquares())
RECONSTRUCTIONS.register("obs")(LeastSquares())
RECONSTRUCTIONS.register("none")(Keep())
