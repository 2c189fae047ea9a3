"""Group lasso: the norm of all coupled weights of an index, so that whole indices shrink to zero."""

from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.training.coupled_weights import CoupledWeights
from graphprune.training.regularizers import REGULARIZERS, Regularizer


@REGULARIZERS.register("group-lasso")
@dataclass
class GroupLasso(Regularizer):
    """``strength * sum_i sqrt(p_i) ||w_i||``, where ``w_i`` are the ``p_i`` weights of index ``i`` in all its places.

    After Yuan and Lin (2006), over the groups of the analysis instead of single layers.
    """

    strength: float = 1e-5

    def penalty(self, weights: CoupledWeights) -> Tensor:
        """Penalty of all indices of all groups."""
        tiny = torch.finfo(torch.float32).tiny  # the root has no gradient at zero
        norms = [
            group.cost.parameters**0.5 * (weights.energy(group) + tiny).sqrt().sum() for group in weights.groups
        ]  # fmt: skip
        return self.strength * torch.stack(norms).sum()
