"""Selection of what the next round removes, before it does: for regularizers and soft pruning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from graphprune.axes.groups import Dependencies
from graphprune.ir.program import Program
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.pipeline import Pass, Pipeline
from graphprune.planning.facts import Eligible
from graphprune.planning.plan import Plan, Rows
from graphprune.statistics.moments import Statistics
from graphprune.training.coupled_weights import CoupledWeights, removed_masks
from graphprune.training.regularizers import Regularizer
from graphprune.training.rounds import planning, prunable
from graphprune.workflows.recipes.recipe_rules import flat


@dataclass(frozen=True)
class Selection:
    """Weights of the groups that the next round may cut, and the rows that it will retain, if they were selected.

    `mass` is the share of the removed indices in the quantities of the regularizer, when they were selected.
    """

    weights: CoupledWeights
    rows: Mapping[str, Rows] | None = None
    mass: float = 0.0


def surveyed(module: nn.Module, program: Program, passes: Sequence[Pass]) -> CoupledWeights:
    """Weights of the groups that a recipe may cut."""
    survey = next(step for step in flat(passes) if step.surveys)
    program = Pipeline((survey,))(program)
    return CoupledWeights(module, program, program.fact(Dependencies), prunable(program, passes))


def select(
    module: nn.Module,
    program: Program,
    passes: Sequence[Pass],
    regularizer: Regularizer | None,
    batches: tuple[Any, ...] = (),
    soft: bool = False,
) -> Selection:
    """Groups of the next round, with a plan if a regularizer or soft pruning needs it."""
    if not soft and (regularizer is None or not regularizer.selects):
        return Selection(surveyed(module, program, passes))
    planned = Pipeline(planning(passes))(program)
    dependencies, groups = planned.fact(Dependencies), tuple(planned.fact(Eligible).groups)
    rows = dict(planned.fact(Plan).groups)
    weights = CoupledWeights(module, program, dependencies, groups, removed_masks(groups, rows, dependencies))
    if soft or regularizer is None:
        return Selection(weights, rows)
    if regularizer.observes:
        weights.statistics = _observed(planned, batches)
    return Selection(weights, rows, regularizer.mass(weights))


def _observed(planned: Program, batches: tuple[Any, ...]) -> Statistics:
    """Moments of the inputs of the linear layers that contract the groups."""
    known = planned.facts.get(Statistics)
    if known is not None:
        return known  # type: ignore[no-any-return]
    measured = Pipeline((Calibrate(moments="diagonal", batches=batches),), given=tuple(planned.facts))(planned)
    return measured.fact(Statistics)
