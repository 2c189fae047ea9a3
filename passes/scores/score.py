"""The pass that scores every index of the groups that a method cuts."""

from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.axes.groups import Dependencies, Group
from graphprune.errors import PlanError
from graphprune.ir.program import Program
from graphprune.passes.scores import SCORES
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Eligible, Scores
from graphprune.planning.interfaces import Evidence
from graphprune.statistics.moments import GradientSums, Statistics


@PASSES.register("score")
@dataclass(frozen=True)
class Score(Pass):
    """Score indices `by` a registered method; groups that it does not cut are no longer eligible."""

    name: ClassVar[str] = "score"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible)
    makes: ClassVar[tuple[type, ...]] = (Scores,)
    memory_bounded: ClassVar[bool] = True
    by: str = "magnitude"
    seed: int = 0

    def run(self, program: Program) -> Program:
        """The program with scores.

        Raises:
            PlanError: if no eligible group is left.
        """
        method, dependencies = SCORES[self.by], program.fact(Dependencies)
        groups = in_play(program, self.by)
        statistics, gradients = program.facts.get(Statistics), program.facts.get(GradientSums)
        evidence = Evidence(program, dependencies, statistics, self.seed, gradients)
        scores = {group.name: method.score(group, evidence) for group in groups}
        return program.with_facts(Scores(scores, self.by), replace(program.fact(Eligible), groups=groups))


def in_play(program: Program, score: str) -> tuple[Group, ...]:
    """The eligible groups that a score cuts.

    Raises:
        PlanError: if there is none.
    """
    eligible, dependencies = program.fact(Eligible), program.fact(Dependencies)
    groups = tuple(g for g in eligible.groups if SCORES[score].applies(g, dependencies.consumers_of(g)))
    if not groups:
        why = "; ".join(f"{kind}: {reason}" for kind, reason in list(eligible.refused.items())[:3])
        where = eligible.destination.name
        raise PlanError(f"no group is left that {score} may cut for destination {where}. {why}".strip())
    return groups
