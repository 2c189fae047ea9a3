"""The pass that plans in several shots: a part is cut and what is left refitted, before the next part is chosen."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.axes.groups import Dependencies, Group
from graphprune.errors import PlanError
from graphprune.ir.program import Program
from graphprune.passes.allocation.allocate import Allocate
from graphprune.passes.analysis.find_groups import analyze
from graphprune.passes.rewriting.rewrite import Rewrite
from graphprune.passes.selection.select import Select
from graphprune.pipeline import Pass, Pipeline
from graphprune.planning.facts import Eligible, Scores, Shares
from graphprune.planning.plan import Plan

LOWER = 1e-6  # of the range of scores: by so much those of what is gone lie below those of what is left


@dataclass(frozen=True)
class Iterative(Pass):
    """Plan in `count` shots, the share that goes growing linearly (as in TransAct, arXiv:2407.05690).

    After every shot but the last the model is cut and refitted by `refit`, and what is left is scored anew by `scoring`
    after the passes `again`, such as calibration. The plan is one for the model as it is: scores are brought back to
    its indices, and of those that are gone they are the lowest; groups cut down to a single index keep theirs. So one
    cut and one refit, at the full widths, follow.
    """

    name: ClassVar[str] = "iterative"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible)
    makes: ClassVar[tuple[type, ...]] = (Scores, Shares, Plan)
    count: int
    again: tuple[Pass, ...]
    scoring: tuple[Pass, ...]
    allocate: Allocate
    select: Select
    refit: tuple[Pass, ...] = ()

    def check(self) -> None:
        """Refuse numbers that are none.

        Raises:
            PlanError: if there is no shot.
        """
        if not isinstance(self.count, int) or self.count < 1:
            raise PlanError(f"shots must be a positive whole number, got {self.count}")

    def run(self, program: Program) -> Program:
        """The program with a plan, and the scores that led to it.

        Raises:
            PlanError: if the share asked for cannot be reached.
        """
        program = self._through(program, *self.scoring)
        for shot in range(1, self.count):
            small = self._through(self._planned(program, shot / self.count), Rewrite(), *self.refit)
            program = program.with_facts(self._scores(program, small))
        return self._planned(program, 1.0)

    def _planned(self, program: Program, part: float) -> Program:
        """The program with a plan for a part of what is to go."""
        asked = {"sparsity": self.allocate.sparsity, "ratio": self.allocate.ratio}
        now = {name: value * part for name, value in asked.items() if value is not None}
        return self._through(program, replace(self.allocate, **now), self.select)  # type: ignore[arg-type]

    def _through(self, program: Program, *passes: Pass) -> Program:
        return Pipeline(passes, given=tuple(program.facts))(program)

    def _scores(self, program: Program, small: Program) -> Scores:
        """The scores of what the small program has, at the indices of the whole one."""
        found, eligible, old = analyze(small), program.fact(Eligible), program.fact(Scores)
        plan, groups = small.fact(Plan), program.fact(Dependencies).by_name
        left = tuple(found.by_name[g.name] for g in eligible.groups if _is_left(g, found.by_name.get(g.name), plan))
        known = found, replace(eligible, groups=left)
        new = self._through(small.with_facts(*known), *self.again, *self.scoring).fact(Scores).by_group

        def merged(name: str) -> Tensor:
            return _back(new[name], old.by_group[name], groups[name], plan) if name in new else old.by_group[name]

        return Scores({name: merged(name) for name in old.by_group}, old.method)


def _is_left(whole: Group, small: Group | None, plan: Plan) -> bool:
    """Is this what a group became? An axis of size 1 is gone, and others may be called like it."""
    if small is None or small.size != plan.widths.get(whole.name, whole.size):
        return False
    return {(p.parameter, p.dim) for p in small.places} == {(p.parameter, p.dim) for p in whole.places}


def _back(small: Tensor, whole: Tensor, group: Group, plan: Plan) -> Tensor:
    """Scores of kept indices, shape (rows, width), where they stand among all, shape (rows, group.size)."""
    low, high = float(small.min()), float(small.max())
    found = torch.full(whole.shape, low - LOWER * max(high - low, abs(low), 1e-12), dtype=small.dtype)
    owners = plan.groups.get(group.linked or "", (tuple(range(len(whole))),))[0]
    kept = plan.groups.get(group.name, (tuple(range(group.size)),))
    for row, at in zip(small.expand(len(owners), -1), owners, strict=True):
        found[at, torch.tensor(kept[at if len(kept) > 1 else 0])] = row
    return found
