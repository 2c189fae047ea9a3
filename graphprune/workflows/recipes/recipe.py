"""Pipelines of recipes with the options of a user.

An option reaches the passes that have a field of its name, where the text of the recipe does not set that field. The
others are rules of `recipe_rules`: `score`, `allocation` and `refit` replace methods, a table of `sensitivity` replaces
the allocation, `coarse` divides the reduction between blocks and groups, a budget in latency is measured, `shots` plan
in rounds, and `drop_blocks` are dropped first.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from graphprune.errors import CalibrationError, PlanError, RegistryError
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.passes.scores import SCORES
from graphprune.passes.scores.score import Score
from graphprune.passes.sensitivity.measure_sensitivity import MeasureSensitivity
from graphprune.pipeline import Pass, Pipeline, live, parse
from graphprune.planning.plan import Plan
from graphprune.workflows.recipes import auto_recipe
from graphprune.workflows.recipes import recipe_rules as rules
from graphprune.workflows.recipes.catalogue import RECIPES, Recipe

log = logging.getLogger("graphprune.run")


def chosen(options: Any) -> Recipe:
    """Recipe of a run: the named one, or the pipeline of the user.

    Raises:
        RegistryError: if there is no such recipe.
    """
    text = getattr(options, "pipeline", "")  # sensitivities are measured for recipes only
    if text:
        return Recipe("pipeline", "a pipeline of the user", "--pipeline", text)
    name = options.recipe
    if name not in RECIPES and name in SCORES:
        raise RegistryError(f"{name} is a score, not a recipe: pass score={name!r}, which replaces that of a recipe")
    return auto_recipe.for_run(options) if name == auto_recipe.AUTO else RECIPES[name]


def pipeline(options: Any, **more: Any) -> Pipeline:
    """Pipeline of a whole run; `more` are options that do not come from the user.

    Raises:
        PlanError: if the recipe cannot follow an option.
        GraphpruneError: if an option of a pass is impossible.
    """
    recipe = chosen(options)
    return Pipeline(_assembled(recipe, recipe.text_for(options), options, more))


def plan_pipeline(options: Any, **more: Any) -> Pipeline:
    """Pipeline of a run up to its plan, without passes that the plan does not need; for errors see `pipeline`."""
    recipe = chosen(options)
    passes = _assembled(recipe, recipe.text, options, more)
    end = next((i for i, step in enumerate(passes) if Plan in step.needs and Plan not in step.makes), len(passes))
    if not any(Plan in step.makes for step in passes[:end]):
        raise PlanError(f"recipe {recipe.name} makes no plan; add select, allocate-ranks or drop-blocks")
    return Pipeline(live(passes[:end], (Plan,)), planned=passes[end:])


def sensitivity_pipeline(options: Any, ratios: Sequence[float], **more: Any) -> Pipeline:
    """Pipeline that measures the loss after cutting each group of a recipe alone.

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
    """Refit of a recipe; least squares where it has none, or one that adds biases."""
    return "least-squares" if recipe.refit == "none" or RECONSTRUCTIONS[recipe.refit].adds_bias else recipe.refit


def require_data(passes: Sequence[Pass], options: Any) -> None:
    """Check that passes have the calibration data that they need, and warn of a text that none of them reads.

    The user's own data is known later.

    Raises:
        CalibrationError: if they have none.
    """
    if options.data is not None or getattr(options, "labelled", None) is not None:
        return
    calibrations = [step for step in rules.flat(passes) if isinstance(step, Calibrate)]
    if options.calibration and not calibrations:
        log.warning("no pass of this run reads data: the calibration text has no effect")
    if any(not step.text and not step.batches for step in calibrations):
        raise CalibrationError(
            f"recipe {options.recipe} needs calibration data; name a text (--calibration FILE), or give data, "
            "batches of inputs"
        )


def _assembled(recipe: Recipe, text: str, options: Any, more: Mapping[str, Any]) -> tuple[Pass, ...]:
    """Passes of a pipeline text with the options of a run."""
    values = rules.values(options, more)
    passes = rules.with_methods(parse(text, values), recipe.name, options, values)
    passes = rules.with_rounds(passes, recipe.name, options.shots)
    passes = rules.with_blocks(passes, recipe.name, options)
    passes = rules.with_table(passes, recipe.name, options)
    passes = rules.with_latency(passes, options, values)
    passes = rules.with_follow(passes, recipe.name, options)
    passes = rules.with_rounding(passes, recipe.name, options, values)
    rules.require_groups(passes, recipe.name, options)
    return rules.with_named_blocks(passes, recipe.name, options, values)
