"""Weights of coupled groups in a module that trains, as differentiable sums by index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from graphprune.axes.groups import Dependencies, Group, Place
from graphprune.axes.index_sets import locate
from graphprune.axes.rule import Consumer
from graphprune.errors import TrainingError
from graphprune.ir.program import Program
from graphprune.planning.index_scores import chooser, rows_of
from graphprune.statistics.moments import Statistics


@dataclass(frozen=True)
class Positions:
    """Index of a group at every position of a dimension of a parameter, or of two where another selects its row.

    `flat` holds the index in a table of shape (rows, size), `inside` where the group stands, `dims` the dimensions.
    """

    parameter: str
    dims: tuple[int, ...]
    inside: Tensor
    flat: Tensor
    rows: int
    size: int

    @classmethod
    def of(cls, place: Place, group: Group, dependencies: Dependencies) -> "Positions":
        """Positions of a group in one place."""
        owner = dependencies.by_name[group.linked].prime if group.linked else None
        row_dim = chooser(place, group, dependencies)
        rows, columns = torch.tensor(locate(place.axis, group.prime, owner if row_dim is None else None)).unbind(1)
        count = rows_of(group, dependencies)
        if row_dim is not None:
            rows, columns = torch.arange(count)[:, None].expand(-1, len(columns)), columns.expand(count, -1)
        inside = columns.reshape(-1) >= 0
        flat = (rows * group.size + columns).reshape(-1)[inside]
        dims = (place.dim,) if row_dim is None else (row_dim, place.dim)
        return cls(place.parameter, dims, inside.nonzero()[:, 0], flat, count, group.size)

    def sums(self, values: Tensor) -> Tensor:
        """Sum of all values of a parameter at each index, shape (rows, size)."""
        other = [dim for dim in range(values.dim()) if dim not in self.dims]
        along = (values.sum(other) if other else values).reshape(-1)[self.inside.to(values.device)]
        total = values.new_zeros(self.rows * self.size).index_add(0, self.flat.to(values.device), along)
        return total.view(self.rows, self.size)

    def factors(self, values: Tensor, weight: Tensor) -> Tensor:
        """Values of all indices, shape (rows, size), as factors of a weight; 1 where the group does not stand."""
        sizes = [n if dim in self.dims else 1 for dim, n in enumerate(weight.shape)]
        whole = torch.ones(sizes, device=weight.device, dtype=values.dtype).reshape(-1)
        chosen = values.to(weight.device).reshape(-1)[self.flat.to(weight.device)]
        return whole.index_copy(0, self.inside.to(weight.device), chosen).view(sizes).to(weight.dtype)


@dataclass
class CoupledWeights:
    """Groups of a module that may be cut in the next round, and their current weights.

    `removed` marks the indices that the next round will remove, shape (rows, size) for each group, where a plan was
    made before. `statistics` holds the moments of the inputs of linear layers, where a regularizer needs them.
    """

    module: nn.Module
    program: Program
    dependencies: Dependencies
    groups: Sequence[Group]
    removed: Mapping[str, Tensor] = field(default_factory=dict)
    statistics: Statistics | None = None

    @cached_property
    def positions(self) -> Mapping[str, Sequence[Positions]]:
        """Positions of every group in the parameters of the module."""
        names = self.program.parameters
        return {
            group.name: [Positions.of(p, group, self.dependencies) for p in group.places if p.parameter in names]
            for group in self.groups
        }

    @property
    def zero(self) -> Tensor:
        """Sum of nothing, on the device of the module."""
        return next(self.module.parameters()).new_zeros(())

    def weight(self, name: str) -> Tensor:
        """Current parameter of the module, with its gradient.

        Raises:
            TrainingError: if it was cut since the groups were inferred.
        """
        path, _, leaf = name.rpartition(".")
        tensor: Tensor = getattr(self.module.get_submodule(path), leaf)
        expected = tuple(axis.size for axis in self.dependencies.tensors[name])
        if tuple(tensor.shape) != expected:
            raise TrainingError(
                f"{name} has shape {tuple(tensor.shape)}, and its groups were of shape {expected}: it was cut since; "
                "only the pruner may change shapes: call pruner.penalty() anew for every batch, or make a new pruner"
            )
        return tensor

    def energy(self, group: Group) -> Tensor:
        """Sum of the squares of all coupled weights of every index, shape (rows, size)."""
        return torch.stack([at.sums(self.weight(at.parameter).square()) for at in self.positions[group.name]]).sum(0)

    def contracted(self, group: Group) -> list[tuple[Consumer, Positions]]:
        """Linear layers that contract a group, each with the positions of the group in the columns of its weight."""
        known = {(at.parameter, at.dims[-1]): at for at in self.positions[group.name]}
        pairs = ((c, known.get((c.weight, c.dim))) for c in self.dependencies.consumers_of(group))
        return [(consumer, at) for consumer, at in pairs if at is not None and len(at.dims) == 1]

    def removed_share(self, values: Mapping[str, Tensor]) -> float:
        """Share of a quantity, shape (rows, size) for each group, that the removed indices hold."""
        with torch.no_grad():
            marked = {name: mask for name, mask in self.removed.items() if name in values}
            part = sum(float((values[name] * mask.to(values[name])).sum()) for name, mask in marked.items())
            return part / max(sum(float(value.sum()) for value in values.values()), 1e-30)


def removed_masks(groups: Sequence[Group], rows: Mapping[str, Sequence[Sequence[int]]], dependencies: Dependencies
                  ) -> dict[str, Tensor]:  # fmt: skip
    """Marks of the indices that are not among the retained `rows` of each group, shape (rows, size)."""
    masks = {}
    for group in groups:
        if group.name in rows:
            mask = torch.ones(len(rows[group.name]), group.size)
            for i, row in enumerate(rows[group.name]):
                mask[i, torch.tensor(row)] = 0.0
            masks[group.name] = mask.expand(rows_of(group, dependencies), -1)
    return masks
