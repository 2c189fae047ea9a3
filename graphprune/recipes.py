"""Recipes: named pipelines, each a published method or a baseline."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphprune.passes.allocate import Allocate
from graphprune.passes.allocation import ALLOCATIONS
from graphprune.passes.analyze import Analyze
from graphprune.passes.calibrate import Calibrate
from graphprune.passes.reach import Reach
from graphprune.passes.refit import Refit
from graphprune.passes.rewrite import Rewrite
from graphprune.passes.room import Room
from graphprune.passes.score import Score
from graphprune.passes.scores import SCORES
from graphprune.passes.select import Select
from graphprune.passes.verify import Verify
from graphprune.pipeline import Pass, Pipeline
from graphprune.registry import Registry


@dataclass(frozen=True)
class Recipe:
    """A score, an allocation and a refit under one name."""

    name: str
    description: str
    source: str
    score: str
    allocation: str = "uniform"
    refit: str = "none"

    @property
    def calibrates(self) -> bool:
        """Does it need calibration data?"""
        return self.plans_with_data or self.refit != "none"

    @property
    def plans_with_data(self) -> bool:
        """Does it need calibration data for its plan?"""
        return SCORES[self.score].needs_calibration or ALLOCATIONS[self.allocation].needs_calibration


@dataclass(frozen=True)
class Options:
    """What a user may ask of any recipe."""

    sparsity: float | None = None
    ratio: float | None = None
    align: int = 1
    destination: str = "free"
    protect: Sequence[str] = ()
    exact_only: bool = True
    seed: int = 0


RECIPES: Registry[str, Recipe] = Registry("recipe")


def add(*recipes: Recipe) -> None:
    """Register recipes by their names."""
    for recipe in recipes:
        RECIPES.register(recipe.name)(recipe)


add(
    Recipe(
        "fasp",
        "column sums of |W| ||x||, least squares on what is left",
        "arXiv:2501.09412",
        "fasp",
        refit="least-squares",
    ),
    Recipe("fasp-no-refit", "the same selection, nothing refitted", "arXiv:2501.09412", "fasp"),
    Recipe("magnitude", "the norm of all coupled weights", "baseline", "magnitude"),
    Recipe("random", "chance", "baseline", "random"),
)


def planning(recipe: Recipe, options: Options, calibrate: Calibrate | None) -> tuple[Pass, ...]:
    """The passes of a recipe up to the plan; calibration gathers what the score asks for."""
    score = SCORES[recipe.score]
    if calibrate is not None:
        calibrate = replace(calibrate, moments=score.moments, producers=score.producers)
    return (
        Analyze(options.destination, tuple(options.protect), options.exact_only),
        *([Reach(recipe.score, options.sparsity, options.align)] if options.sparsity is not None else []),
        *([Room(recipe.refit, recipe.score)] if recipe.refit != "none" else []),
        *([calibrate] if calibrate else []),
        Score(recipe.score, options.seed),
        Allocate(recipe.allocation, options.sparsity, options.ratio, options.seed),
        Select(options.align),
    )


def cutting(recipe: Recipe) -> tuple[Pass, ...]:
    """The passes of a recipe after the plan."""
    refit = [] if recipe.refit == "none" else [Refit(recipe.refit)]
    return Rewrite(), *refit, Verify()


def pipeline(recipe: Recipe, options: Options, calibrate: Calibrate | None) -> Pipeline:
    """The whole pipeline of a recipe."""
    return Pipeline((*planning(recipe, options, calibrate), *cutting(recipe)))
