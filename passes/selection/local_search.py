"""The pass that swaps kept indices with removed ones, as long as the best refit gets nearer to the dense outputs.

The local search of OSSCAR (arXiv:2403.12983) after its greedy one. With W the weight of a map, S the damped second
moments of its inputs, K what is kept and M what is not, the error after the best refit is ``tr(W_M C W_M^T)``, where
``C = S_MM - S_MK S_KK^-1 S_KM``. Taking back columns g lowers it by ``tr(R_g C_gg^-1 R_g^T)`` with ``R = W_M C``;
removing them, with ``P = S_KK^-1`` and the refitted weight W', raises it by ``tr(W'_g P_gg^-1 W'_g^T)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.axes.groups import Dependencies, Group
from graphprune.axes.rule import Consumer
from graphprune.display.progress import progress
from graphprune.ir.program import Dropped, Program
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.index_scores import columns_of, rows_of
from graphprune.planning.interfaces import Evidence
from graphprune.planning.plan import Plan, Rows, make
from graphprune.solvers.normal_equations import DEFAULT_DAMPING, add_damping
from graphprune.statistics.moments import FullMoments, Statistics


@PASSES.register("local-search")
@dataclass(frozen=True)
class LocalSearch(Pass):
    """Improve a plan by at most `rounds` exchanges in every group that linear maps contract, widths staying as they
    are. It begins with a tenth of what is kept, and halves that whenever nothing is gained. Each group is looked at by
    itself, as if no other were cut."""

    name: ClassVar[str] = "local-search"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Statistics, FullMoments, Plan)
    reads: ClassVar[tuple[type, ...]] = (Dropped,)
    makes: ClassVar[tuple[type, ...]] = (Plan,)
    rounds: int = 16

    def run(self, program: Program) -> Program:
        """The program with the better plan.

        Raises:
            CalibrationError: if there are no full second moments.
        """
        plan, dependencies = program.fact(Plan), program.fact(Dependencies)
        evidence = Evidence(program, dependencies, program.fact(Statistics))
        rows = dict(plan.groups)
        with progress("swapping", len(rows)) as step:
            for name in rows:
                group = dependencies.by_name[name]
                maps = [Map.of(c, group, evidence) for c in dependencies.consumers_of(group)]
                if maps:
                    rows[name] = exchanged(maps, rows[name], self.rounds)
                step()
        return program.with_facts(make(program, dependencies, rows, **{**plan.made_by, "swaps": self.rounds}))


@dataclass(frozen=True)
class Map:
    """A linear map: its matrix (m, n), the damped second moments of its inputs (n, n), and the columns of each index of
    a group, shape (rows, size, count)."""

    weight: Tensor
    second: Tensor
    columns: Tensor

    @classmethod
    def of(cls, consumer: Consumer, group: Group, evidence: Evidence) -> "Map":
        """The map of a consumer."""
        second = evidence.moments(consumer).gram
        columns = columns_of(consumer, group, evidence.dependencies)
        rows = rows_of(group, evidence.dependencies)
        return cls(evidence.matrix(consumer), add_damping(second, DEFAULT_DAMPING), columns.expand(rows, -1, -1))

    def gains(self, kept: Tensor) -> Tensor:
        """By how much the error falls if an index comes back, shape (rows, size); nothing of those that are there."""
        left, gone = self._divided(kept)
        residual, weight = self._residual(left, gone), self.weight[:, gone] @ self._residual(left, gone)
        return self._summed(~kept, gone, weight, residual)

    def losses(self, kept: Tensor) -> Tensor:
        """By how much it rises if an index goes, shape (rows, size); nothing of those that are gone."""
        left, gone = self._divided(kept)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.second[left][:, left]))
        weight = self.weight[:, left] + self.weight[:, gone] @ self.second[gone][:, left] @ inverse
        return self._summed(kept, left, weight, inverse)

    def error(self, kept: Tensor) -> float:
        """The squared error after the best refit."""
        left, gone = self._divided(kept)
        weight = self.weight[:, gone]
        return float(((weight @ self._residual(left, gone)) * weight).sum())

    def _divided(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """The columns that are left, and those that are gone."""
        there = torch.ones(len(self.second), dtype=torch.bool)
        there[self.columns[~kept].flatten()] = False
        return there.nonzero()[:, 0], (~there).nonzero()[:, 0]

    def _residual(self, left: Tensor, gone: Tensor) -> Tensor:
        """C: what the columns that are left do not say of those that are gone."""
        cross = self.second[left][:, gone]
        factor = torch.linalg.cholesky(self.second[left][:, left])
        return self.second[gone][:, gone] - cross.T @ torch.cholesky_solve(cross, factor)

    def _summed(self, which: Tensor, columns: Tensor, weight: Tensor, matrix: Tensor) -> Tensor:
        """``tr(V_g X_gg^-1 V_g^T)`` of the indices in `which`; V and X stand at `columns` only."""
        place = torch.zeros(len(self.second), dtype=torch.long)
        place[columns] = torch.arange(len(columns))
        sets = place[self.columns[which]]
        v = weight.T[sets]
        found = torch.zeros(which.shape, dtype=v.dtype)
        found[which] = (v * torch.linalg.solve(matrix[sets[:, :, None], sets[:, None, :]], v)).sum((1, 2))
        return found


def exchanged(maps: Sequence[Map], rows: Rows, rounds: int) -> Rows:
    """Rows of kept indices, as many as before, with an error that is no greater."""
    kept = torch.zeros(maps[0].columns.shape[:2], dtype=torch.bool)
    at = torch.tensor(rows)
    kept = kept.scatter(1, at.expand(len(kept), -1), True)
    error, most = sum(one.error(kept) for one in maps), min(at.shape[1], kept.shape[1] - at.shape[1])
    count = min(max(at.shape[1] // 10, 1), most)
    for _ in range(rounds):
        if not count:
            break
        tried = _exchanged(maps, kept, count, len(rows) == 1)
        new = sum(one.error(tried) for one in maps)
        if new < error * (1 - 1e-9):
            kept, error = tried, new
        else:
            count //= 2
    found = [tuple(row.nonzero()[:, 0].tolist()) for row in kept]
    return tuple(found[: len(rows)])


def _exchanged(maps: Sequence[Map], kept: Tensor, count: int, together: bool) -> Tensor:
    """What is kept, shape (rows, size), after `count` indices of every row came back and as many others went.

    With `together` all rows keep the same indices.
    """
    gains = _shared(sum((one.gains(kept) for one in maps), torch.zeros(())), together)
    back = gains.masked_fill(kept, -torch.inf).topk(count, dim=1).indices
    more = kept.scatter(1, back, True)
    losses = _shared(sum((one.losses(more) for one in maps), torch.zeros(())), together)
    return more.scatter(1, losses.masked_fill(~more, torch.inf).topk(count, dim=1, largest=False).indices, False)


def _shared(values: Tensor, together: bool) -> Tensor:
    """The same values for all rows."""
    return values.sum(0, keepdim=True).expand_as(values) if together else values
