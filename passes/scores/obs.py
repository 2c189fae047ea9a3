"""Optimal Brain Surgeon on columns (OSSCAR, arXiv:2403.12983): the error that is left after the best refit.

Of one column it is ``||W_j||^2 / [S^-1]_jj``, of several that go together ``tr(W_g [(S^-1)_gg]^-1 W_g^T)``. ``obs``
takes every index alone; ``osscar`` removes one after the other, refits the rest, and judges it again. The pass
``swap`` is its local search.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.axes.rule import Consumer
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import Innermost, Outermost, columns_of, rows_of
from graphprune.planning.interfaces import Evidence
from graphprune.planning.ranking import Point
from graphprune.solvers.normal_equations import DEFAULT, damped

ROUNDS = 64  # between which everything is judged again


@dataclass
class Problem:
    """One linear map: its matrix (m, n), the inverse of the damped S of its inputs (n, n), and the columns that belong
    to each index of a group, shape (rows, size, count). Columns that are gone are zero, with ones in the diagonal."""

    weight: Tensor
    inverse: Tensor
    columns: Tensor

    @classmethod
    def of(cls, consumer: Consumer, group: Group, evidence: Evidence, damping: float = DEFAULT) -> "Problem":
        """The problem of a map, nothing removed."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(evidence.moments(consumer).second, damping)))
        return cls(evidence.matrix(consumer), inverse, columns_of(consumer, group, evidence.dependencies))

    def errors(self) -> Tensor:
        """``tr(W_g [(S^-1)_gg]^-1 W_g^T)`` of every index, shape (rows, size)."""
        sets = self.columns.flatten(0, 1)
        inner = self.inverse[sets[:, :, None], sets[:, None, :]]
        weight = self.weight.T[sets]
        found: Tensor = (weight * torch.linalg.solve(inner, weight)).sum((1, 2))
        return found.view(self.columns.shape[:2])

    def remove(self, chosen: Tensor) -> float:
        """Remove the columns of the indices `chosen` of every row, shape (rows, how many), and refit the rest: the
        error that this adds."""
        gone = self.columns.gather(1, chosen[..., None].expand(-1, -1, self.columns.shape[2])).flatten()
        cross, weight = self.inverse[gone], self.weight[:, gone].T
        solved = torch.linalg.solve(cross[:, gone], torch.cat([cross, weight], 1))
        step, added = solved[:, : cross.shape[1]], float((weight * solved[:, cross.shape[1] :]).sum())
        self.weight = self.weight - self.weight[:, gone] @ step
        self.inverse = self.inverse - cross.T @ step
        self.weight[:, gone] = 0
        self.inverse[gone] = 0
        self.inverse[:, gone] = 0
        self.inverse[gone, gone] = 1
        return added


class Obs(Innermost):
    """The error after the best refit, of each index alone."""

    moments = "full"

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """The score of every index, shape (rows, group.size)."""
        consumers = evidence.dependencies.consumers_of(group)
        return torch.stack([Problem.of(consumer, group, evidence).errors() for consumer in consumers]).sum(0)


class Osscar(Outermost):
    """The place of every index in the order in which the greedy search removes them; the last is kept longest."""

    moments = "full"

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """The score of every index, shape (rows, group.size)."""
        consumers = evidence.dependencies.consumers_of(group)
        problems = [Problem.of(consumer, group, evidence) for consumer in consumers]
        place, _ = greedy(problems, rows_of(group, evidence.dependencies), group.size)
        return place.double()


def greedy(problems: Sequence[Problem], rows: int, size: int) -> tuple[Tensor, list[Point]]:
    """The place of every index in the order in which they go, shape (rows, size), all rows losing equally many; and
    how many are gone, with the sum of errors, after each of the rounds."""
    place, batch, points = torch.full((rows, size), -1), -(-size // ROUNDS), [(0.0, 0.0)]
    for start in range(0, size, batch):
        errors = torch.stack([problem.errors() for problem in problems]).sum(0).masked_fill(place >= 0, torch.inf)
        chosen = errors.argsort(dim=1, stable=True)[:, : min(batch, size - start)]
        place = place.scatter(1, chosen, torch.arange(start, start + chosen.shape[1]).expand(chosen.shape))
        added = sum(problem.remove(chosen) for problem in problems)
        points.append((float(start + chosen.shape[1]), points[-1][1] + max(added, 0.0)))
    return place, points


SCORES.register("obs")(Obs())
SCORES.register("osscar")(Osscar())
