"""FLAP's compensation (arXiv:2312.11983): a bias adds the mean output of the removed columns.

``b' = b + W_M mu_M``; the authors take the means of the dense model, as ``refit{statistics=dense}`` does.
"""

import torch
from torch import Tensor

from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.planning.interfaces import Reconstruction, Refitted
from graphprune.solvers.normal_equations import NormalEquations, reconstruct
from graphprune.statistics.moments import Moments


class Bias(Reconstruction):
    """Retained weights are unchanged, and the mean contribution of the removed columns is added to the bias."""

    adds_bias = True

    def refit(
        self, weight: Tensor, retained: Tensor, moments: Moments, held_out: Moments | None, damping: float | None
    ) -> Refitted:
        """The retained columns unchanged, and a bias of shape (m,), which needs no damping."""
        return reconstruct(weight, retained, moments, held_out, 0.0, _mean)


def _mean(system: NormalEquations, damping: float) -> tuple[Tensor, Tensor]:
    correction = torch.zeros_like(system.cross)
    return correction, system.bias(correction)


RECONSTRUCTIONS.register("bias")(Bias())
