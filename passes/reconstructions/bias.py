"""FLAP's compensation (arXiv:2312.11983): a bias makes the mean of what was removed.

``b' = b + W_M mu_M``; the authors take the means of the dense model, which ``refit{statistics=dense}`` does.
"""

import torch
from torch import Tensor

from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.planning.interfaces import Reconstruction, Refitted
from graphprune.solvers.normal_equations import NormalEquations, reconstruct
from graphprune.statistics.moments import Moments


class Bias(Reconstruction):
    """What is left keeps its weights, and every output gets the mean of what it misses."""

    adds_bias = True

    def refit(
        self, weight: Tensor, kept: Tensor, seen: Moments, held_out: Moments | None, damping: float | None
    ) -> Refitted:
        """The columns as they are, and a bias of shape (m,); there is nothing to damp."""
        return reconstruct(weight, kept, seen, held_out, 0.0, _mean)


def _mean(system: NormalEquations, damping: float) -> tuple[Tensor, Tensor]:
    nothing = torch.zeros_like(system.cross)
    return nothing, system.bias(nothing)


RECONSTRUCTIONS.register("bias")(Bias())
