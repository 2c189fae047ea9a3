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
    makes: ClassVar[tuple[type, ...]] = (Eligible, Scores)
    memory_bounded: ClassVar[bool] = True
    by: str = "magnitude"
    seed: int = 0

    @property
    def needs(self) -> tuple[type, ...]:
        """The groups, and what the method reads."""
        return (Dependencies, Eligible, *SCORES[self.by].needs)

    def check(self) -> None:
        """Refuse methods that do not exist.

        Raises:
            RegistryError: if there is no such score.
        """
        SCORES[self.by]

    def preflight(self, program: Program) -> Program:
        """The program with the groups that the method cuts as the only eligible ones.

        Raises:
            PlanError: if there is none.
        """
        return program.with_facts(replace(program.fact(Eligible), groups=in_play(program, self.by)))

    def run(self, program: Program) -> Program:
        """The program with scores.

        Raises:
            PlanError: if no eligible group is left.
        """
        method, dependencies = SCORES[self.by], program.fact(Dependencies)
        groups = in_play(program, self.by)
        statistics = program.fact(Statistics) if Statistics in method.needs else None
        gradients = program.fact(GradientSums) if GradientSums in method.needs else None
        evidence = Evidence(program, dependencies, statistics, self.seed, gradients)
        scores = {group.name: method.score(group, evidence) for group in groups}
        return program.with_facts(Scores(scores, self.by), replace(program.fact(Eligible), groups=groups))


def in_play(program: Program, score: str) -> tuple[Group, ...]:
    """The eligible groups that a score cuts.

    Raises:
        PlanError: if there is none.
    """
    eligible, dependencies = program.fact(Eligible), program.fact(Dependencies)
    method = SCORES[score]
    groups = eligible.among(g for g in eligible.groups if method.applies(g, method.readers(g, dependencies)))
    if not groups:
        why = "; ".join(f"{kind}: {reason}" for kind, reason in list(eligible.refused.items())[:3])
        where = eligible.destination.name
        raise PlanError(f"no group is left that {score} may cut for destination {where}. {why}".strip())
    return groups
