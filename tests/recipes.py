"""Pipelines of recipes with a few options, for tests."""

from typing import Any

from graphprune.pipeline import Pipeline
from graphprune.workflows.options import PruneOptions
from graphprune.workflows.recipes.catalogue import RECIPES
from graphprune.workflows.recipes.recipe import pipeline


def options_of(recipe: str = "fasp", **options: Any) -> PruneOptions:
    """The options of a run on destination free, at widths of any number."""
    named: dict[str, Any] = {"output": "out", "recipe": recipe, "destination": "free", "align": 1, **options}
    if recipe in RECIPES and "split-experts" in RECIPES[recipe].text:  # it removes no parameters
        named.setdefault("budget", "macs")
    return PruneOptions("model", **named)


def pipeline_of(recipe: str = "fasp", **options: Any) -> Pipeline:
    """The whole pipeline of a recipe."""
    return pipeline(options_of(recipe, **options))
