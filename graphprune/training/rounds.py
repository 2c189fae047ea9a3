"""Result of a round, and the pipelines of its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from graphprune.axes.groups import Dependencies, Group
from graphprune.errors import TrainingError
from graphprune.execution.output_comparison import Verification
from graphprune.ir.program import Dropped, ExpertSplit, Factored, Program, Rotatable
from graphprune.passes.scores.score import Score, in_play
from graphprune.pipeline import Pass, live
from graphprune.planning.facts import Eligible
from graphprune.planning.plan import Plan, Rows, make
from graphprune.training import replicas
from graphprune.workflows.recipes.recipe_rules import flat
from graphprune.writeback.module import WrittenBack

#: Facts of changes that a module in training cannot follow, and what a recipe does that makes them.
ALIEN = {
    Dropped: "drops blocks",
    Rotatable: "rotates residual streams",
    Factored: "factorizes layers",
    ExpertSplit: "splits layers into experts",
}


@dataclass(frozen=True)
class Round:
    """Result of one round.

    `written` is None where the schedule has nothing to remove in it. `sparsity` is the share of the initial budget
    removed so far, `target` that of the schedule. `seconds` has the time of each part of the round; `traced` the reason
    why the module was captured again, if it was. `masses` are shares of the indices that were removed: before the
    regularizer acted on them, and after. `softened` is the share of all indices that was set to zero instead of cut.
    """

    number: int
    target: float
    sparsity: float
    before: int
    after: int
    verification: Verification | None = None
    written: WrittenBack | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    traced: str = ""
    masses: tuple[float, float] | None = None
    softened: float = 0.0

    def __str__(self) -> str:
        head = f"round {self.number}: {self.before:,} -> {self.after:,} parameters, {self.sparsity:.1%} removed"
        lines = [f"{head} (target {self.target:.1%}), {sum(self.seconds.values()):.2f} s"]
        if self.softened:
            lines = [f"warm start: {self.softened:.1%} of the indices are zero, and may recover"]
        elif not self.written:
            lines.append("nothing to remove in this round")
        if self.verification:
            lines.append(f"largest difference to the masked model {self.verification.max_error:.1e}")
        if self.masses:
            lines.append(f"mass of what was removed: {self.masses[0]:.1%} -> {self.masses[1]:.1%}")
        lines += [f"captured again: {self.traced}"] if self.traced else []
        return "\n  ".join(lines)


@dataclass(frozen=True)
class AgreeOnPlan(Pass):
    """The plan of the first process for all processes."""

    name: ClassVar[str] = "agree-on-plan"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Plan)
    makes: ClassVar[tuple[type, ...]] = (Plan,)

    def run(self, program: Program) -> Program:
        """The program with the plan of the first process."""
        plan = program.fact(Plan)
        rows = replicas.from_first(dict(plan.groups))
        return program.with_facts(make(program, program.fact(Dependencies), rows, **plan.made_by))


@dataclass(frozen=True)
class GivenPlan(Pass):
    """A plan that was made before, for the same graph with other weights."""

    name: ClassVar[str] = "given-plan"
    needs: ClassVar[tuple[type, ...]] = (Dependencies,)
    makes: ClassVar[tuple[type, ...]] = (Plan,)
    groups: Mapping[str, Rows] = field(default_factory=dict, repr=False)

    def run(self, program: Program) -> Program:
        """The program with the plan."""
        return program.with_facts(make(program, program.fact(Dependencies), self.groups, score="given"))


def require_followed(passes: Sequence[Pass], recipe: str) -> None:
    """Check that a module in training can follow the passes of a recipe.

    Raises:
        TrainingError: if it cannot, because it removes blocks, rotates or factorizes.
    """
    steps = flat(passes)
    made = {fact for step in steps for fact in step.makes}
    if alien := [what for kind, what in ALIEN.items() if kind in made]:
        raise TrainingError(
            f"recipe {recipe} {' and '.join(alien)}, which a module in training cannot follow; choose a recipe that "
            "cuts groups, such as magnitude or fasp"
        )
    if not any(Plan in step.makes for step in steps):
        raise TrainingError(f"recipe {recipe} makes no plan; choose one that cuts groups, such as magnitude or fasp")


def split_at_plan(passes: Sequence[Pass]) -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
    """Passes up to the plan, and those after it."""
    end = 1 + max(i for i, step in enumerate(passes) if Plan in step.makes)
    return tuple(passes[:end]), tuple(passes[end:])


def planning(passes: Sequence[Pass]) -> tuple[Pass, ...]:
    """Passes that make the plan, on which all processes agree."""
    return (*live(split_at_plan(passes)[0], (Plan,)), AgreeOnPlan())


def whole(passes: Sequence[Pass]) -> tuple[Pass, ...]:
    """All passes, with a plan on which all processes agree."""
    first, last = split_at_plan(passes)
    return (*first, AgreeOnPlan(), *last)


def with_plan(passes: Sequence[Pass], groups: Mapping[str, Rows]) -> tuple[Pass, ...]:
    """All passes that are needed for a plan that was made before."""
    first, last = split_at_plan(passes)
    gathering = tuple(step for step in flat(first) if step.surveys or step.pure)
    return live((*gathering, GivenPlan(groups), *last))


def prunable(program: Program, passes: Sequence[Pass]) -> tuple[Group, ...]:
    """Groups of a surveyed program that the scores of a recipe cut."""
    names = [step.by for step in flat(passes) if isinstance(step, Score)]
    return in_play(program, names[0]) if names else tuple(program.fact(Eligible).groups)
