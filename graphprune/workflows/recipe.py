"""Recipes: pipelines as text, and the pipelines that they become with the options of a user.

An option reaches the passes that have a field of its name, where the text of the recipe does not set that field. The
few that are more than a field are rules of this file: `score`, `allocation` and `refit` replace methods, a table of
`sensitivity` takes the place of the allocation, `coarse` divides the reduction between blocks and groups, a budget in
latency is measured, and `shots` plan in rounds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from graphprune.errors import CalibrationError, PlanError
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.passes.scores.score import Score
from graphprune.passes.sensitivity.measure_sensitivity import MeasureSensitivity
from graphprune.pipeline import Pass, Pipeline, live, parse
from graphprune.planning.plan import Plan
from graphprune.workflows import recipe_rules as rules
from graphprune.workflows.catalogue import RECIPES, Recipe


def chosen(options: Any) -> Recipe:
    """The recipe of a run: the one of that name, or the pipeline that the user wrote.

    Raises:
        RegistryError: if there is no such recipe.
    """
    text = getattr(options, "pipeline", "")  # sensitivities are measured for recipes only
    return Recipe("pipeline", "a pipeline of the user", "--pipeline", text) if text else RECIPES[options.recipe]


def pipeline(options: Any, **more: Any) -> Pipeline:
    """The whole pipeline of a run; `more` options come from elsewhere than the user.

    Raises:
        PlanError: if the recipe cannot follow an option.
        GraphpruneError: if an option of a pass is impossible.
    """
    recipe = chosen(options)
    return Pipeline(_assembled(recipe, recipe.text_for(options), options, more))


def plan_pipeline(options: Any, **more: Any) -> Pipeline:
    """The pipeline of a run up to its plan, without the passes that this does not take; for errors see `pipeline`."""
    recipe = chosen(options)
    passes = _assembled(recipe, recipe.text, options, more)
    end = next((i for i, step in enumerate(passes) if Plan in step.needs and Plan not in step.makes), len(passes))
    if not any(Plan in step.makes for step in passes[:end]):
        raise PlanError(f"recipe {recipe.name} makes no plan; put select, allocate-ranks or drop-blocks into it")
    return Pipeline(live(passes[:end], (Plan,)), planned=passes[end:])


def sensitivity_pipeline(options: Any, ratios: Sequence[float], **more: Any) -> Pipeline:
    """The pipeline that cuts each group alone that a recipe cuts, and measures the loss.

    Raises:
        PlanError: if the recipe does not score groups by one method.
    """
    recipe, values = chosen(options), rules.values(options, more)
    steps = rules.flat(parse(recipe.text, values))
    at = next((i for i, step in enumerate(steps) if isinstance(step, Score)), None)
    if at is None:
        raise PlanError(f"recipe {recipe.name} does not score groups by one method; choose another, such as fasp")
    start = max(i for i, step in enumerate(steps[:at]) if step.surveys)
    measure = MeasureSensitivity(tuple(ratios), getattr(options, "refit", None) or weights_only(recipe))
    first = next(step for step in steps if step.surveys)
    return Pipeline(rules.completed((first, *steps[start + 1 : at + 1], measure), values))


def weights_only(recipe: Recipe) -> str:
    """The refit of a recipe; least squares where it has none, or one that adds biases."""
    return "least-squares" if recipe.refit == "none" or RECONSTRUCTIONS[recipe.refit].adds_bias else recipe.refit


def require_data(passes: Pipeline, recipe: str) -> None:
    """Refuse to start a pipeline without the calibration data that it takes.

    Raises:
        CalibrationError: if there are none.
    """
    if any(isinstance(step, Calibrate) and not step.text and not step.batches for step in rules.flat(passes.passes)):
        raise CalibrationError(f"recipe {recipe} needs calibration data; name a text (--calibration FILE)")


def _assembled(recipe: Recipe, text: str, options: Any, more: Mapping[str, Any]) -> tuple[Pass, ...]:
    """The passes of a text with the options of a run."""
    values = rules.values(options, more)
    passes = rules.with_methods(parse(text, values), recipe.name, options, values)
    passes = rules.with_rounds(passes, recipe.name, options.shots)
    passes = rules.with_blocks(passes, recipe.name, options)
    passes = rules.with_table(passes, recipe.name, options)
    return rules.with_latency(passes, options, values)
