"""Options as recipes take them."""

from dataclasses import fields
from typing import TypeVar

from graphprune.errors import CalibrationError
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.pipeline import Pipeline
from graphprune.workflows import recipe as assembly
from graphprune.workflows.catalogue import RECIPES
from graphprune.workflows.option_fields import OptionGroup
from graphprune.workflows.options import PlanOptions, PruneOptions

T = TypeVar("T")


def chosen(kind: type[T], options: OptionGroup, **more: object) -> T:
    """An object whose fields are the options of the same names, or `more`."""
    shared = {one.name for one in fields(kind) if one.init} & vars(options).keys()  # type: ignore[arg-type]
    return kind(**{name: getattr(options, name) for name in shared} | more)


def plan_pipeline(options: PlanOptions) -> Pipeline:
    """The passes that end with a plan."""
    recipe = RECIPES[options.recipe]
    data = chosen(Calibrate, options, text=options.calibration or "") if recipe.plans_with_data else None
    return assembly.plan_only(recipe, chosen(assembly.Options, options), data)


def calibration(options: PruneOptions, **more: object) -> Calibrate | None:
    """The pass that calibrates, where the recipe needs one.

    Raises:
        CalibrationError: if it needs data and there are none.
    """
    if not RECIPES[options.recipe].calibrates:
        return None
    if not options.calibration and not options.batches:
        raise CalibrationError(f"recipe {options.recipe} needs calibration data; name a text (--calibration FILE)")
    return chosen(Calibrate, options, text=options.calibration or "", **more)
