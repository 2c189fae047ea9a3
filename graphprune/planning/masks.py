"""Differentiable masks of the indices of groups, broadcast to the parameters in which they stand."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.axes.groups import Dependencies, Group, Place
from graphprune.axes.index_sets import locate
from graphprune.ir.weights import DerivedWeights
from graphprune.planning.index_scores import chooser


@dataclass(frozen=True)
class Gated(DerivedWeights):
    """The weights of `base`, multiplied at the indices of groups by the values of `masks`.

    A mask has the shape (rows, group.size), a row for each index of the group that this one is linked to. Gradients do
    not pass through buffers, since operators have none for running statistics.
    """

    dependencies: Dependencies
    masks: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.base[name].detach()
        for group, place in self._places(name):
            mask = broadcast_mask(self.masks[group.name], place, group, self.dependencies).to(tensor.dtype)
            tensor = tensor * (mask if name in self.dependencies.parameters else mask.detach())
        return tensor

    def _places(self, name: str) -> Iterable[tuple[Group, Place]]:
        groups = (self.dependencies.by_name[group] for group in self.masks)
        return ((group, place) for group in groups for place in group.places if place.parameter == name)


def broadcast_mask(mask: Tensor, place: Place, group: Group, dependencies: Dependencies) -> Tensor:
    """The value of a mask for every element of a parameter, in a shape that broadcasts to it; 1 outside the group."""
    owner = dependencies.by_name[group.linked].prime if group.linked else None
    row_dim = chooser(place, group, dependencies)
    rows, columns = torch.tensor(locate(place.axis, group.prime, owner if row_dim is None else None)).unbind(1)
    if row_dim is not None:  # another dimension, before this one, selects the row
        rows, columns = torch.arange(len(mask))[:, None], columns[None, :]
    values = mask[rows, columns.clamp(min=0)].where(columns >= 0, 1.0)
    sizes = [axis.size for axis in dependencies.tensors[place.parameter]]
    return values.reshape([n if dim in (place.dim, row_dim) else 1 for dim, n in enumerate(sizes)])
