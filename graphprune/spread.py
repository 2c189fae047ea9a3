"""From the columns of a dimension to the indices of a group."""

import torch
from torch import Tensor

from graphprune.axes import Axis, primes, resolve
from graphprune.dependencies import Dependencies, Group, Place
from graphprune.kept import locate


def rows_of(group: Group, dependencies: Dependencies) -> int:
    """How many rows of kept indices the group may have: one, or one for each index of its link."""
    return dependencies.by_name[group.linked].size if group.linked else 1


def chooser(place: Place, group: Group, dependencies: Dependencies) -> int | None:
    """The dimension of the parameter that chooses the indices of the group in another one; it comes before that."""
    owner = dependencies.by_name[group.linked].prime if group.linked else None
    dims = dependencies.tensors[place.parameter]
    inside = owner is None or owner in primes(place.axis)
    return None if inside else next(i for i, axis in enumerate(dims) if resolve(axis) is owner)


def by_index(values: Tensor, axis: Axis, group: Group, dependencies: Dependencies) -> Tensor:
    """Sum the values of all positions of a dimension, shape (axis.size,), at the indices of `group` that they hold.

    Where another dimension chooses them, values have the shape (rows, axis.size). Returns a tensor of shape
    (rows, group.size), one row for each index of the group that it is linked to.
    """
    if values.dim() == 2:
        columns = torch.tensor(locate(axis, group.prime))[:, 1]
        found = torch.zeros(len(values), group.size, dtype=values.dtype)
        return found.index_add(1, columns[columns >= 0], values[:, columns >= 0])
    owner = dependencies.by_name[group.linked].prime if group.linked else None
    rows, columns = torch.tensor(locate(axis, group.prime, owner)).unbind(1)
    inside = columns >= 0
    found = torch.zeros(rows_of(group, dependencies), group.size, dtype=values.dtype)
    return found.index_put((rows[inside], columns[inside]), values[inside], accumulate=True)
