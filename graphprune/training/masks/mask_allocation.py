"""Passes that choose indices by learned masks: one threshold of their probabilities for all groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from graphprune.axes.groups import Dependencies
from graphprune.errors import TrainingError
from graphprune.ir.program import Program
from graphprune.passes.allocation.allocate import Allocate, with_target
from graphprune.passes.scores.score import Score
from graphprune.passes.selection.select import knobs
from graphprune.pipeline import Pass, live
from graphprune.planning.budget import Budget
from graphprune.planning.facts import Eligible, Scores, Shares
from graphprune.training.rounds import whole


@dataclass(frozen=True)
class GivenScores(Pass):
    """Scores that training has learned; groups without any are no longer eligible."""

    name: ClassVar[str] = "given-scores"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible)
    makes: ClassVar[tuple[type, ...]] = (Eligible, Scores)
    scores: Scores | None = field(default=None, repr=False)

    def run(self, program: Program) -> Program:
        """The program with the scores."""
        assert self.scores is not None
        eligible = program.fact(Eligible)
        groups = tuple(group for group in eligible.groups if group.name in self.scores.by_group)
        return program.with_facts(replace(eligible, groups=groups), self.scores)


@dataclass(frozen=True)
class AllocateByMasks(Pass):
    """Remove the indices whose masks are the least open, across all groups, up to a `sparsity` in a `budget`."""

    name: ClassVar[str] = "allocate-by-masks"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible, Scores)
    makes: ClassVar[tuple[type, ...]] = (Shares,)
    sparsity: float = 0.0
    budget: str = "parameters"

    def run(self, program: Program) -> Program:
        """The program with the shares of its groups."""
        movable = knobs(program.fact(Eligible), 1)
        budget = with_target(Budget.of(program, movable, 0, self.budget), self.sparsity, program)
        open_masks = program.fact(Scores).by_group

        def shares(threshold: float) -> Mapping[str, float]:
            return {name: float((table > threshold).double().mean()) for name, table in open_masks.items()}

        return program.with_facts(Shares(budget.solve(shares), budget.target, self.budget))


def with_masks(passes: Sequence[Pass], scores: Scores, recipe: str) -> tuple[Pass, ...]:
    """All passes of a round, with the scores and the allocation of masks.

    Raises:
        TrainingError: if the recipe does not score and allocate groups once.
    """
    if [sum(isinstance(step, kind) for step in passes) for kind in (Score, Allocate)] != [1, 1]:
        raise TrainingError(f"recipe {recipe} does not score groups once, so that masks cannot replace its scores")

    def changed(step: Pass) -> Pass:
        if isinstance(step, Allocate):
            return AllocateByMasks((step.sparsity or 0.0) * step.part, step.budget)
        return GivenScores(scores) if isinstance(step, Score) else step

    return live(whole([changed(step) for step in passes]))
