"""Programs of one module from round to round: the graph of a cut is the start of the next one."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn

from graphprune.axes.groups import Dependencies
from graphprune.errors import TraceError, TrainingError, WriteBackError, choices, reason_of
from graphprune.frontends.modules import trace
from graphprune.ir.program import Inputs, Program
from graphprune.passes.rewriting.rewrite import Rewrite
from graphprune.passes.scores import SCORES
from graphprune.pipeline import Pass, Pipeline
from graphprune.planning.budget import NONE, Budget, require_unit
from graphprune.planning.plan import Plan, Rows
from graphprune.training.current_program import reconfigured, refreshed
from graphprune.training.rounds import require_followed, with_plan
from graphprune.workflows.options import PlanOptions
from graphprune.workflows.recipes import recipe as recipes
from graphprune.workflows.recipes.catalogue import RECIPES
from graphprune.writeback.module import WrittenBack

log = logging.getLogger(__name__)

BASE = "magnitude"  # the recipe whose score is replaced where `recipe` names a score
HALF: Mapping[str, Any] = MappingProxyType({"sparsity": 0.5})  # any amount, where only the passes count
OPTIONS = (
    "align", "allocation", "autocast", "budget", "destination", "exact_only", "follow", "protect", "refit", "samples",
    "score", "seed", "trials",
)  # fmt: skip
SCALED = "its last cut multiplied weights by constants of the graph"
ADAPTED = "its last cut adapted code, from which the graph was captured"


def options_of(recipe: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `graphprune.plan` for a recipe, the text of a pipeline, or a score with which `magnitude` is run.

    Raises:
        RegistryError: if there is no such recipe or score.
        TrainingError: if an option is unknown, or is not for rounds.
    """
    for name in options:
        if name not in OPTIONS:
            raise TrainingError(f"a pruner has no option {name!r}; {choices(name, OPTIONS)}")
    require_unit(str(options.get("budget", "parameters")))
    if options.get("budget") == "latency":
        raise TrainingError("a pruner has no budget in latency, which it would measure in every round; use macs")
    if "|" in recipe:
        return {**options, "pipeline": recipe}
    if recipe not in RECIPES and recipe in SCORES:
        return {**options, "recipe": BASE, "score": recipe}
    return {**options, "recipe": RECIPES[recipe].name}


@dataclass
class Chain:
    """The current `program` of a module that was captured with the inputs `example`, and `options` of its plans.

    `whole` is the initial budget. `stale` is the reason why the module must be captured again before the next round,
    `captured` that of the latest such capture.
    """

    module: nn.Module
    example: Inputs
    options: Mapping[str, Any]
    program: Program = field(init=False)
    whole: int = field(init=False)
    stale: str = ""
    captured: str = ""

    def __post_init__(self) -> None:
        self.program = trace(self.module, *self.example)
        self.whole = self.amount(self.program)
        require_followed(self.passes(self.program, HALF, {}), self.recipe)

    @property
    def recipe(self) -> str:
        """Name of the recipe."""
        return str(self.options.get("recipe", "pipeline"))

    def amount(self, program: Program, widths: Mapping[str, int] = NONE) -> int:
        """Amount of the budget that a program has, with groups of these widths."""
        budget = Budget.of(program, (), 0, str(self.options.get("budget", "parameters")), widths)
        return budget.total - round(budget.removed({}))

    def removed(self, program: Program, widths: Mapping[str, int] = NONE) -> float:
        """Share of the initial budget that a program lacks, with groups of these widths."""
        return 1 - self.amount(program, widths) / max(self.whole, 1)

    def share(self, program: Program, target: float) -> float:
        """Share of a program to remove, so that the `target` share of the initial one is removed."""
        return 1 - (1 - target) * self.whole / max(self.amount(program), 1)

    def current(self) -> Program:
        """Program of the module with its current weights; the module is captured again if it differs from the graph.

        Raises:
            TrainingError: if someone else changed a shape or type of the module.
            TraceError: if the module cannot be captured again.
        """
        reason, self.stale = self.stale, ""
        try:
            if reason:
                self._capture(reason)
        except TraceError:
            if reason != ADAPTED:  # the graph still has the numbers of adapted code
                self.stale = reason
                raise
        return refreshed(self.program, self.module)

    def _capture(self, reason: str) -> None:
        """Capture the module again."""
        log.info("%s is captured again, because %s", type(self.module).__name__, reason)
        self.program, self.captured = trace(self.module, *self.example), reason

    def passes(self, program: Program, amount: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[Pass, ...]:
        """Passes of the recipe that remove an amount of a program, an option of `graphprune.plan`."""
        options = PlanOptions(program=program, **{**self.options, **amount, **data})
        return recipes.pipeline(options).passes

    def cut(self, program: Program, passes: Sequence[Pass]) -> Program:
        """Program after these passes."""
        return Pipeline(tuple(passes))(program)

    def write_back(self, small: Program, passes: Sequence[Pass], **companions: Any) -> tuple[Program, WrittenBack]:
        """Narrow the module; return the program and the result.

        Where the module cannot follow the graph of earlier rounds, it is captured again and follows the same plan.

        Raises:
            WriteBackError: if it cannot follow that either; it is unchanged then.
        """
        try:
            written = small.write_back(self.module, **companions)
        except WriteBackError as fault:
            self._capture(reason_of(fault))
            groups = dict(small.fact(Plan).groups)
            if not groups.keys() <= self.program.fact(Dependencies).by_name.keys():
                raise
            small = self.cut(refreshed(self.program, self.module), with_plan(passes, groups))
            written = small.write_back(self.module, **companions)
        wide = written.program or small
        wide = wide.without(*wide.facts)
        self.program = reconfigured(wide, self.module) if companions.get("configuration", True) else wide
        self.stale = SCALED if written.multiplied else ADAPTED if written.adapted else ""
        return small, written

    def repeat(self, groups: Mapping[str, Rows], **companions: Any) -> tuple[Program, WrittenBack]:
        """Narrow the module as an earlier run did."""
        passes = with_plan(self.passes(self.program, HALF, {}), groups)
        end = 1 + next(i for i, step in enumerate(passes) if isinstance(step, Rewrite))
        small = self.cut(self.current(), passes[:end])
        return self.write_back(small, passes[:end], **companions)
