"""Network slimming (arXiv:1708.06519): the absolute scales of batch norms, each of which switches a channel."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graphprune.errors import TrainingError
from graphprune.training.coupled_weights import CoupledWeights
from graphprune.training.regularizers import REGULARIZERS, Regularizer


@REGULARIZERS.register("bn-scale")
@dataclass
class NormScales(Regularizer):
    """``strength * sum |scale|`` over the batch norms whose channels belong to a group that may be cut."""

    strength: float = 1e-4

    def penalty(self, weights: CoupledWeights) -> Tensor:
        """Penalty of the scales.

        Raises:
            TrainingError: if the module has no such scales.
        """
        names = dict.fromkeys(at.parameter for places in weights.positions.values() for at in places)
        scales = [weights.weight(name) for name in names if _is_scale(weights.module, name)]
        if not scales:
            raise TrainingError(
                "no group that may be cut has the scale of a batch norm, which regularizer bn-scale acts on; choose "
                "group-lasso"
            )
        return self.strength * torch.stack([scale.abs().sum() for scale in scales]).sum()


def _is_scale(module: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    return leaf == "weight" and isinstance(module.get_submodule(path), nn.modules.batchnorm._BatchNorm)
