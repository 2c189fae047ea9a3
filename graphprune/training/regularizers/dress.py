"""DReSS (arXiv:2501.17905): regularize what will be cut by its effect on data, so that others take it over first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.errors import TrainingError
from graphprune.training.coupled_weights import CoupledWeights
from graphprune.training.regularizers import REGULARIZERS, Regularizer


@REGULARIZERS.register("dress")
@dataclass
class OutputEnergy(Regularizer):
    """``strength`` times the energy that the indices to be removed add to outputs, relative to that of all indices.

    The energy of an index is ``E[x_j^2] ||W_j||^2``, summed over its columns ``j`` in the linear layers that contract
    it. The squares of inputs are measured on the data when a round begins. The paper takes the norm of weights that
    were selected by data; this form, with the inputs, is reconstructed.
    """

    selects: ClassVar[bool] = True
    observes: ClassVar[bool] = True
    strength: float = 1.0

    def penalty(self, weights: CoupledWeights) -> Tensor:
        """Penalty of the indices that will be removed.

        Raises:
            TrainingError: if no linear layer contracts them.
        """
        energies = self.quantities(weights)
        marked = [
            energies[name] * mask.to(energies[name]) for name, mask in weights.removed.items() if name in energies
        ]
        if weights.removed and not marked:
            raise TrainingError("no linear layer contracts what will be removed, which regularizer dress acts on")
        total = torch.stack([energy.detach().sum() for energy in energies.values()]).sum()
        return (
            self.strength
            * torch.stack([weights.zero, *(energy.sum() for energy in marked)]).sum()
            / total.clamp(min=1e-30)
        )

    def quantities(self, weights: CoupledWeights) -> Mapping[str, Tensor]:
        """Energy of every index of every group that a linear layer contracts, shape (rows, size)."""
        return {group.name: _energy(group, weights) for group in weights.groups if weights.contracted(group)}


def _energy(group: Group, weights: CoupledWeights) -> Tensor:
    assert weights.statistics is not None
    parts = []
    for consumer, positions in weights.contracted(group):
        moments = weights.statistics.moments[consumer.key]
        weight = weights.weight(consumer.weight)
        columns = consumer.matrix(weight).square().sum(0) * (moments.squares / max(moments.tokens, 1)).to(weight)
        along = columns.reshape(-1, consumer.taps).sum(1)
        table = along.new_zeros(positions.rows * positions.size)
        indices = positions.flat.to(along.device)
        parts.append(table.index_add(0, indices, along[positions.inside.to(along.device)]).view(positions.rows, -1))
    return torch.stack(parts).sum(0)
