"""Field family of the zoo: models that people bring, taken through everything that people do with them."""

from tests.zoo import field
from tools.zoo_benchmark.field_folders import run_folder
from tools.zoo_benchmark.field_modules import run_module
from tools.zoo_benchmark.goal import Goal
from tools.zoo_benchmark.outcomes import Outcomes
from tools.zoo_benchmark.record import Report

PREFIX = "field/"


def run(name: str, report: Report, goal: Goal) -> None:
    """Take a model through all stages; what happens is in the record."""
    model = field.get(name.removeprefix(PREFIX))
    if isinstance(model, field.FieldModel):
        run_module(model, Outcomes(report), goal)
    else:
        run_folder(model, Outcomes(report), goal)
