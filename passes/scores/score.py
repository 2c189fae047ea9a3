"""The pass that scores every index of the groups that a method cuts."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.axes.groups import Dependencies, Group
from graphprune.display.progress import progress
from graphprune.errors import PlanError
from graphprune.ir.program import Program
from graphprune.passes.scores import SCORES
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Eligible, Scores
from graphprune.planning.index_scores import OfExperts
from graphprune.planning.interfaces import Evidence
from graphprune.statistics.moments import GradientSums, Statistics

log = logging.getLogger(__name__)


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
        if names := stacks_without_score(program, self.by):
            able = ", ".join(sorted(name for name, method in SCORES.items() if method.stacks))
            log.warning(
                "score %s does not rate stacks of linear layers, such as experts: %d groups, such as %s, keep all "
                "indices; scores that do are %s",
                self.by, len(names), names[0], able,
            )  # fmt: skip
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
        eligible = program.fact(Eligible)
        scores = dict[str, Tensor]()
        with progress("scoring groups", len(groups)) as step:
            for group in groups:
                removed = eligible.removed.get(group.name)
                scores[group.name] = method.score(group, evidence) if removed is None else _without(group, removed)
                step()
        return program.with_facts(Scores(scores, self.by), replace(eligible, groups=groups))


def _without(group: Group, removed: Sequence[int]) -> Tensor:
    """Scores of one row, 0 for the indices to remove and 1 for others."""
    scores = torch.ones(1, group.size, dtype=torch.float64)
    scores[0, list(removed)] = 0
    return scores


def stacks_without_score(program: Program, score: str) -> list[str]:
    """The eligible groups inside of stacks of linear layers, which a score that rates none does not cut."""
    method, dependencies = SCORES[score], program.fact(Dependencies)
    rated_otherwise = method.stacks or isinstance(method, OfExperts)
    stacked = [] if rated_otherwise else [g for g in program.fact(Eligible).groups if dependencies.members_of(g)]
    rated = method.scored(program, stacked)
    return [group.name for group in stacked if group not in rated]


def in_play(program: Program, score: str) -> tuple[Group, ...]:
    """The eligible groups that a score cuts, and those whose indices to remove are given.

    Raises:
        PlanError: if there is none, or the width of another group is requested.
    """
    eligible, dependencies = program.fact(Eligible), program.fact(Dependencies)
    rated = eligible.removed.keys() | {group.name for group in SCORES[score].scored(program, eligible.groups)}
    groups = eligible.among(group for group in eligible.groups if group.name in rated)
    _require_requests(eligible, groups, dependencies, score)
    if not groups:
        raise PlanError(
            f"no group is left that {score} may cut for destination {eligible.destination.name}: "
            f"{'; '.join(_exclusions(eligible, dependencies))}"
        )
    return groups


def _exclusions(eligible: Eligible, dependencies: Dependencies) -> Iterator[str]:
    """Reasons why groups are not cut."""
    yield from (f"{kind}: {reason}" for kind, reason in list(eligible.refused.items())[:3])
    if eligible.groups:
        yield f"the score does not rate {', '.join(dict.fromkeys(group.label for group in eligible.groups))}"
    names = {group.name for group in eligible.groups}
    others = [g for g in dependencies.groups if g.name not in names and g.kind not in eligible.refused]
    if others:
        yield f"{len(others)} groups are protected, or their cuts are not exact (exact_only)"
    if not dependencies.groups:
        pinned = [f"{p.parameter}:{p.dim} ({', '.join(p.reasons)})" for p in dependencies.pinned[:3]]
        yield f"the model has no group at all; what cannot be cut is {', '.join(pinned) or 'no parameter'}"


def _require_requests(eligible: Eligible, groups: Sequence[Group], dependencies: Dependencies, score: str) -> None:
    """Refuse requests for groups that are not cut, and different ones for groups that must have one width."""
    for name in eligible.requested.keys() - {group.name for group in groups}:
        group = dependencies.by_name[name]
        if group.kind in eligible.refused:
            raise PlanError(f"a width of {name} is requested, which cannot be cut: {eligible.refused[group.kind]}")
        raise PlanError(
            f"score {score} does not rate the {group.label} of {name}, whose width is requested; choose another one, "
            "such as magnitude, or name the indices to remove (drop)"
        )
    for tie in eligible.tied:
        if len({eligible.requested.get(name) for name in tie}) > 1:
            raise PlanError(f"{', '.join(tie)} must have one width in the module; request the same for all of them")
