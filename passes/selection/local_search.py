"""The pass that swaps retained indices with removed ones, as long as the error after the best refit falls.

The local search of OSSCAR (arXiv:2403.12983), which follows its greedy search. With the weight W of a linear layer,
the damped Gram matrix H of its inputs, retained columns K and removed columns M, the error after the best refit is
``tr(W_M C W_M^T)`` with the Schur complement ``C = H_MM - H_MK H_KK^-1 H_KM``. Restoring columns g lowers the error by
``tr(R_g C_gg^-1 R_g^T)`` with ``R = W_M C``; removing them, with ``P = H_KK^-1`` and the refitted weight W', raises it
by ``tr(W'_g P_gg^-1 W'_g^T)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.axes.groups import Dependencies, Group
from graphprune.axes.rule import Consumer
from graphprune.display.progress import progress
from graphprune.ir.program import Dropped, Program
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Eligible
from graphprune.planning.index_scores import columns_of, rows_of
from graphprune.planning.interfaces import Evidence
from graphprune.planning.plan import Plan, Rows, make
from graphprune.solvers.normal_equations import DEFAULT_DAMPING, add_damping
from graphprune.statistics.moments import FullMoments, Statistics


@PASSES.register("local-search")
@dataclass(frozen=True)
class LocalSearch(Pass):
    """Improve a plan by at most `rounds` exchanges in every group that consumers contract, at the same widths. An
    exchange begins with a tenth of the retained indices, which is halved whenever the error does not fall. Each group
    is improved as if no other one were cut. Groups whose indices to remove are given are unchanged."""

    name: ClassVar[str] = "local-search"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Statistics, FullMoments, Plan)
    reads: ClassVar[tuple[type, ...]] = (Dropped, Eligible)
    makes: ClassVar[tuple[type, ...]] = (Plan,)
    rounds: int = 16

    def run(self, program: Program) -> Program:
        """The program with the improved plan.

        Raises:
            CalibrationError: if there are no full Gram matrices.
        """
        plan, dependencies = program.fact(Plan), program.fact(Dependencies)
        evidence = Evidence(program, dependencies, program.fact(Statistics))
        rows = dict(plan.groups)
        given = program.facts[Eligible].removed if Eligible in program.facts else {}
        with progress("swapping", len(rows)) as step:
            for name in rows.keys() - given.keys():
                group = dependencies.by_name[name]
                layers = [LinearLayer.of(c, group, evidence) for c in dependencies.consumers_of(group)]
                if layers:
                    rows[name] = exchanged(layers, rows[name], self.rounds)
                step()
        swapped = make(program, dependencies, rows, **{**plan.made_by, "swaps": self.rounds})
        return program.with_facts(replace(swapped, wide=plan.wide))


@dataclass(frozen=True)
class LinearLayer:
    """A consumer of a group: its matrix (m, n), the damped Gram matrix of its inputs (n, n), and the columns of each
    index of the group, shape (rows, size, count)."""

    weight: Tensor
    gram: Tensor
    columns: Tensor

    @classmethod
    def of(cls, consumer: Consumer, group: Group, evidence: Evidence) -> "LinearLayer":
        """The layer of a consumer."""
        gram = evidence.moments(consumer).gram
        columns = columns_of(consumer, group, evidence.dependencies)
        rows = rows_of(group, evidence.dependencies)
        return cls(evidence.matrix(consumer), add_damping(gram, DEFAULT_DAMPING), columns.expand(rows, -1, -1))

    def gains(self, retained: Tensor) -> Tensor:
        """The fall of the error if a removed index is restored, shape (rows, size); 0 at retained ones."""
        rest, removed = self._divided(retained)
        residual, weight = self._residual(rest, removed), self.weight[:, removed] @ self._residual(rest, removed)
        return self._quadratic_form(~retained, removed, weight, residual)

    def losses(self, retained: Tensor) -> Tensor:
        """The rise of the error if a retained index is removed, shape (rows, size); 0 at removed ones."""
        rest, removed = self._divided(retained)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.gram[rest][:, rest]))
        weight = self.weight[:, rest] + self.weight[:, removed] @ self.gram[removed][:, rest] @ inverse
        return self._quadratic_form(retained, rest, weight, inverse)

    def error(self, retained: Tensor) -> float:
        """The squared error after the best refit."""
        rest, removed = self._divided(retained)
        weight = self.weight[:, removed]
        return float(((weight @ self._residual(rest, removed)) * weight).sum())

    def _divided(self, retained: Tensor) -> tuple[Tensor, Tensor]:
        """The retained columns, and the removed ones."""
        mask = torch.ones(len(self.gram), dtype=torch.bool)
        mask[self.columns[~retained].flatten()] = False
        return mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]

    def _residual(self, rest: Tensor, removed: Tensor) -> Tensor:
        """The Schur complement C: the part of the removed columns that the retained ones do not explain."""
        cross = self.gram[rest][:, removed]
        factor = torch.linalg.cholesky(self.gram[rest][:, rest])
        return self.gram[removed][:, removed] - cross.T @ torch.cholesky_solve(cross, factor)

    def _quadratic_form(self, mask: Tensor, columns: Tensor, weight: Tensor, matrix: Tensor) -> Tensor:
        """``tr(V_g X_gg^-1 V_g^T)`` for the indices g in a mask; V and X have the rows and columns `columns` only."""
        position = torch.zeros(len(self.gram), dtype=torch.long)
        position[columns] = torch.arange(len(columns))
        sets = position[self.columns[mask]]
        v = weight.T[sets]
        values = torch.zeros(mask.shape, dtype=v.dtype)
        values[mask] = (v * torch.linalg.solve(matrix[sets[:, :, None], sets[:, None, :]], v)).sum((1, 2))
        return values


def exchanged(layers: Sequence[LinearLayer], rows: Rows, rounds: int) -> Rows:
    """Rows of retained indices, as many as before, whose error is no greater."""
    retained = torch.zeros(layers[0].columns.shape[:2], dtype=torch.bool)
    at = torch.tensor(rows)
    retained = retained.scatter(1, at.expand(len(retained), -1), True)
    error, most = sum(one.error(retained) for one in layers), min(at.shape[1], retained.shape[1] - at.shape[1])
    count = min(max(at.shape[1] // 10, 1), most)
    for _ in range(rounds):
        if not count:
            break
        candidate = _exchanged(layers, retained, count, len(rows) == 1)
        new = sum(one.error(candidate) for one in layers)
        if new < error * (1 - 1e-9):
            retained, error = candidate, new
        else:
            count //= 2
    new_rows = [tuple(row.nonzero()[:, 0].tolist()) for row in retained]
    return tuple(new_rows[: len(rows)])


def _exchanged(layers: Sequence[LinearLayer], retained: Tensor, count: int, together: bool) -> Tensor:
    """The retained indices, shape (rows, size), after `count` indices of every row were restored and others removed.

    With `together`, all rows have the same indices.
    """
    gains = _shared(sum((one.gains(retained) for one in layers), torch.zeros(())), together)
    restored = gains.masked_fill(retained, -torch.inf).topk(count, dim=1).indices
    more = retained.scatter(1, restored, True)
    losses = _shared(sum((one.losses(more) for one in layers), torch.zeros(())), together)
    return more.scatter(1, losses.masked_fill(~more, torch.inf).topk(count, dim=1, largest=False).indices, False)


def _shared(values: Tensor, together: bool) -> Tensor:
    """The values; with `together`, their sum for every row."""
    return values.sum(0, keepdim=True).expand_as(values) if together else values
