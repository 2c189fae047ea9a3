"""The pass that plans in rounds: a part is cut and the remainder refitted, before the next part is chosen."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.axes.groups import Dependencies, Group
from graphprune.errors import PlanError
from graphprune.ir.program import Program, Rewritten
from graphprune.passes.allocation.allocate import Allocate
from graphprune.passes.rewriting.rewrite import Rewrite
from graphprune.passes.selection.select import Select
from graphprune.pipeline import PASSES, Pass, Pipeline, live, missing, resolved
from graphprune.planning.budget import Knob
from graphprune.planning.facts import Eligible, Scores
from graphprune.planning.plan import Plan

LOWER = 1e-6  # of the range of scores: by so much the scores of removed indices lie below those of the others


@PASSES.register("iterative")
@dataclass(frozen=True)
class Iterative(Pass):
    """Plan by `steps` in so many `rounds`, the removed share growing linearly (as in TransAct, arXiv:2407.05690).

    The steps end with `allocate` and `select`. After every round but the last the model is cut and refitted by `refit`,
    and the remainder is scored again. The plan is for the uncut model: scores are assigned to its indices, the lowest
    to removed ones; groups of a single index retain their scores. One cut and one refit of the full model follow.
    """

    name: ClassVar[str] = "iterative"
    rounds: int = 3
    steps: tuple[Pass, ...] = ()
    refit: tuple[Pass, ...] = ()

    @property
    def needs(self) -> tuple[type, ...]:
        """The groups, and the facts that the steps need and do not make."""
        refit = missing(self.refit, (*self._made, Rewritten))
        return tuple(dict.fromkeys((Dependencies, Eligible, *missing(self.steps), *refit)))

    @property
    def reads(self) -> tuple[type, ...]:
        """The facts that a step reads where the program has them."""
        return tuple(dict.fromkeys(fact for step in (*self.steps, *self.refit) for fact in step.reads))

    @property
    def makes(self) -> tuple[type, ...]:
        """The facts that the steps make, including the plan."""
        return self._made

    @property
    def _made(self) -> tuple[type, ...]:
        return tuple(dict.fromkeys(fact for step in self.steps for fact in step.makes))

    @property
    def resources(self) -> tuple[str, ...]:
        """The resources of the steps."""
        return tuple(dict.fromkeys(name for step in (*self.steps, *self.refit) for name in step.resources))

    def check(self) -> None:
        """Refuse an impossible number of rounds, and steps that make no plan.

        Raises:
            PlanError: if there is no round, or the steps do not end with `allocate` and `select`.
        """
        if not isinstance(self.rounds, int) or self.rounds < 1:
            raise PlanError(f"rounds must be a positive whole number, got {self.rounds}")
        kinds = [type(step) for step in self.steps]
        if kinds[-2:] != [Allocate, Select] or Allocate in kinds[:-2]:
            raise PlanError("iterative plans by steps that end with allocate and select, such as "
                            "iterative{steps=[score{by=magnitude} | allocate | select]}")  # fmt: skip
        for step in (*self.steps, *self.refit):
            step.check()

    def before(self, later: Sequence[Pass]) -> Pass:
        """The pass with the options of its steps that follow from later passes."""
        return replace(self, steps=resolved(self.steps, later))

    def reduced(self, read: Set[type]) -> Pass:
        """The pass with those steps whose facts are read, by later passes or the refit."""
        return replace(self, steps=live(self.steps, {*read, *missing(self.refit)}))

    def preflight(self, program: Program) -> Program:
        """The program after the preflight of every step.

        Raises:
            GraphpruneError: if a step is impossible.
        """
        for step in (*self.steps, *self.refit):
            program = step.preflight(program)
        return program

    def run(self, program: Program) -> Program:
        """The program with a plan, and the scores of its last round.

        Raises:
            PlanError: if the share cannot be reached.
        """
        program = self._through(program, *self._scoring)
        for i in range(1, self.rounds):
            small = self._through(self._planned(program, i / self.rounds), Rewrite(), *self.refit)
            program = program.with_facts(self._scores(program, small))
        return self._planned(program, 1.0)

    @property
    def _scoring(self) -> tuple[Pass, ...]:
        return self.steps[:-2]

    def _planned(self, program: Program, part: float) -> Program:
        """The program with a plan for a part of the reduction."""
        allocate, select = self.steps[-2:]
        assert isinstance(allocate, Allocate)
        start = program.with_facts(_in_part(program.fact(Eligible), part))
        return self._through(start, replace(allocate, part=allocate.part * part), select)

    def _through(self, program: Program, *passes: Pass) -> Program:
        return Pipeline(passes, given=tuple(program.facts))(program)

    def _scores(self, program: Program, small: Program) -> Scores:
        """The scores of the small program at the indices of the whole one."""
        eligible, old = program.fact(Eligible), program.fact(Scores)
        plan, groups, narrow = small.fact(Plan), program.fact(Dependencies).by_name, small.fact(Dependencies)
        same = (narrow.by_name[g.name] for g in eligible.groups if _is_same(g, narrow.by_name.get(g.name), plan))
        start = small.with_facts(narrow, replace(eligible, groups=tuple(same), requested={}, removed={}))
        new = self._through(start, *self._scoring).fact(Scores).by_group

        def merged(name: str) -> Tensor:
            return _expanded(new[name], old.by_group[name], groups[name], plan) if name in new else old.by_group[name]

        return Scores({name: merged(name) for name in old.by_group}, old.method)


def _in_part(eligible: Eligible, part: float) -> Eligible:
    """Eligible groups with the widths that requested ones have after a part of the reduction; given indices are removed
    at once."""
    knobs = {group.name: Knob.of([group]) for group in eligible.groups if group.name in eligible.requested}
    widths = {
        name: max(width, knobs[name].floor(knobs[name].size - (knobs[name].size - width) * part))
        for name, width in eligible.requested.items()
        if name not in eligible.removed
    }
    return replace(eligible, requested={**eligible.requested, **widths})


def _is_same(whole: Group, small: Group | None, plan: Plan) -> bool:
    """Whether a group was cut to this one: an axis of size 1 vanishes, and another may have its name."""
    if small is None or small.size != plan.widths.get(whole.name, whole.size):
        return False
    return {(p.parameter, p.dim) for p in small.places} == {(p.parameter, p.dim) for p in whole.places}


def _expanded(small: Tensor, whole: Tensor, group: Group, plan: Plan) -> Tensor:
    """Scores of retained indices, shape (rows, width), at their positions in the uncut group, (rows, group.size)."""
    low, high = float(small.min()), float(small.max())
    scores = torch.full(whole.shape, low - LOWER * max(high - low, abs(low), 1e-12), dtype=small.dtype)
    owners = plan.groups.get(group.linked or "", (tuple(range(len(whole))),))[0]
    retained = plan.groups.get(group.name, (tuple(range(group.size)),))
    for row, at in zip(small.expand(len(owners), -1), owners, strict=True):
        scores[at, torch.tensor(retained[at if len(retained) > 1 else 0])] = row
    return scores
