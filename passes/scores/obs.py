"""Optimal Brain Surgeon on columns (OSSCAR, arXiv:2403.12983): output error after the best refit.

Removing one column costs ``||W_j||^2 / [S^-1]_jj``, removing the columns g together ``tr(W_g [(S^-1)_gg]^-1 W_g^T)``,
with the Gram matrix ``S = X X^T`` of the inputs. ``obs`` scores every index alone. ``osscar`` removes indices one after
another, refits the remaining columns and scores them again. The pass ``local-search`` improves its selection.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.axes.groups import Dependencies, Group
from graphprune.axes.rule import Consumer
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import Innermost, Outermost, columns_of, own_row, rows_of
from graphprune.planning.interfaces import Evidence
from graphprune.planning.ranking import Point
from graphprune.solvers.normal_equations import DEFAULT_DAMPING, add_damping

ROUNDS = 64  # of removal; the remaining indices are scored again after each


@dataclass
class Problem:
    """Least-squares problem of one linear layer.

    It holds the weight, shape (m, n), the inverse of the damped Gram matrix of the inputs, shape (n, n), and the
    columns of each index of a group, shape (rows, size, count). Removed columns are zero, with ones on the diagonal of
    the inverse.
    """

    weight: Tensor
    inverse: Tensor
    columns: Tensor

    @classmethod
    def of(cls, consumer: Consumer, group: Group, evidence: Evidence) -> "Problem":
        """Build the problem of a linear layer with all columns."""
        return cls.with_gram(evidence.moments(consumer).gram, consumer, group, evidence)

    @classmethod
    def with_gram(
        cls, gram: Tensor, consumer: Consumer, group: Group, evidence: Evidence, damping: float = DEFAULT_DAMPING
    ) -> "Problem":
        """Build the problem of a linear layer with a Gram matrix of its inputs."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(add_damping(gram, damping)))
        return cls(evidence.matrix(consumer), inverse, columns_of(consumer, group, evidence.dependencies))

    def errors(self) -> Tensor:
        """Removal cost ``tr(W_g [(S^-1)_gg]^-1 W_g^T)`` of every index, shape (rows, size)."""
        sets = self.columns.flatten(0, 1)
        inner = self.inverse[sets[:, :, None], sets[:, None, :]]
        weight = self.weight.T[sets]
        costs: Tensor = (weight * torch.linalg.solve(inner, weight)).sum((1, 2))
        return costs.view(self.columns.shape[:2])

    def remove(self, chosen: Tensor) -> float:
        """Remove the indices `chosen`, shape (rows, count), refit the remaining columns, and return the added error."""
        removed = self.columns.gather(1, chosen[..., None].expand(-1, -1, self.columns.shape[2])).flatten()
        cross, weight = self.inverse[removed], self.weight[:, removed].T
        solved = torch.linalg.solve(cross[:, removed], torch.cat([cross, weight], 1))
        step, added = solved[:, : cross.shape[1]], float((weight * solved[:, cross.shape[1] :]).sum())
        self.weight = self.weight - self.weight[:, removed] @ step
        self.inverse = self.inverse - cross.T @ step
        self.weight[:, removed] = 0
        self.inverse[removed] = 0
        self.inverse[:, removed] = 0
        self.inverse[removed, removed] = 1
        return added


class Obs(Innermost):
    """Output error after the best refit, for each index alone."""

    moments = "full"
    stacks = True

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        errors = torch.zeros(rows_of(group, evidence.dependencies), group.size, dtype=torch.float64)
        for row, consumers in consumers_by_row(group, evidence.dependencies).items():
            for consumer in consumers:
                errors[rows_at(row)] += Problem.of(consumer, group, evidence).errors()
        return errors


class Osscar(Outermost):
    """Position of every index in the removal order of the greedy search."""

    moments = "full"
    stacks = True

    def applies(self, group: Group, consumers: Sequence[Consumer]) -> bool:
        """Whether the group is contracted by members of stacks, or by other layers, and not by both."""
        return super().applies(group, consumers) and len({c.member is None for c in consumers}) == 1

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        return removal_order(group, evidence, lambda consumer: Problem.of(consumer, group, evidence))[0].double()


def consumers_by_row(group: Group, dependencies: Dependencies) -> dict[int | None, list[Consumer]]:
    """The layers that contract a group, by their row; None for those that read all rows."""
    by_row: dict[int | None, list[Consumer]] = {}
    for consumer in (*dependencies.consumers_of(group), *dependencies.members_of(group)):
        by_row.setdefault(own_row(consumer, group, dependencies), []).append(consumer)
    return by_row


def rows_at(row: int | None) -> slice:
    """One row, or all of them for None."""
    return slice(None) if row is None else slice(row, row + 1)


def removal_order(
    group: Group, evidence: Evidence, problem: Callable[[Consumer], Problem]
) -> tuple[Tensor, list[Point]]:
    """Position of every index in the removal order, and the removed count with its error, summed over all rows.

    The rows of members of a stack, such as experts, are independent; `problem` builds one for a layer.
    """
    place = torch.zeros(rows_of(group, evidence.dependencies), group.size, dtype=torch.long)
    counts, errors = list[float](), list[list[float]]()
    for row, consumers in consumers_by_row(group, evidence.dependencies).items():
        part = place[rows_at(row)]
        part[:], points = greedy([problem(consumer) for consumer in consumers], len(part), group.size)
        errors.append([error for _, error in points])
        counts = [count for count, _ in points]
    return place, list(zip(counts, map(sum, zip(*errors, strict=True)), strict=True))


def greedy(problems: Sequence[Problem], rows: int, size: int) -> tuple[Tensor, list[Point]]:
    """Position of every index in the removal order, shape (rows, size), and the removed count with its error by round.

    All rows lose equally many indices in a round.
    """
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
