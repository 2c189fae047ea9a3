"""Amounts that a pruner removes: a share of a budget, or shares or widths of groups, divided among its rounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from graphprune.errors import TrainingError
from graphprune.ir.program import Program
from graphprune.passes.allocation.allocate import Allocate
from graphprune.passes.allocation.ratios import named_ratios
from graphprune.passes.selection.select import Select, knobs
from graphprune.pipeline import Pass, Pipeline
from graphprune.planning.budget import Budget, Knob
from graphprune.planning.facts import Eligible
from graphprune.support import named_values
from graphprune.workflows.recipes.recipe_rules import flat


@dataclass(frozen=True)
class RoundTargets:
    """Shares of the initial budget that are removed after each round; with `widths`, each has its own, by group."""

    reductions: tuple[float, ...]
    widths: tuple[Mapping[str, int], ...] = field(default=(), repr=False)

    def options(self, number: int, share: float) -> dict[str, Any]:
        """Options of the plan of a round, which removes this share of the current budget."""
        return {"widths": dict(self.widths[number])} if self.widths else {"sparsity": min(share, 1 - 1e-9)}


def require_amount(amounts: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Name of the amount that is given: a share of a budget, or `ratio` or `widths` of groups.

    Raises:
        TrainingError: if there is none or several, or a share is impossible.
    """
    names = [name for name, value in amounts.items() if value is not None]
    if len(names) != 1:
        raise TrainingError(f"give one of {', '.join(amounts)}, got {' and '.join(names) or 'none of them'}")
    name, value = names[0], amounts[names[0]]
    if name == "macs" and options.get("budget", "macs") != "macs":
        raise TrainingError(f"macs is a share of multiply-accumulates, and the budget is {options['budget']}; omit one")
    if name == "widths" or isinstance(value, Mapping):
        return name
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise TrainingError(f"{name} must lie between 0 and 1 (0.7 removes 70 %), got {value!r}")
    return name


def require_reachable(program: Program, passes: Sequence[Pass]) -> None:
    """Check that the groups of a program can give what the passes of a plan are to remove.

    Raises:
        PlanError: if they cannot, with the greatest amount that they can give.
    """
    steps = flat(passes)
    surveyed = Pipeline(tuple(takewhile(lambda step: step.surveys, steps)))(program)
    for step in steps:
        if isinstance(step, Allocate | Select):
            surveyed = step.preflight(surveyed)


def of_groups(
    program: Program, passes: Sequence[Pass], parts: Sequence[float], ratio: Any, options: Mapping[str, Any]
) -> RoundTargets:
    """Targets of rounds that narrow groups.

    Args:
        program: The initial program.
        passes: Those of a plan, of which the first ones survey it, with the widths that a user requests.
        parts: The part of the reduction that is made after each round.
        ratio: The share of every group to remove, or shares by name; None for requested widths.
        options: Options of the plan.
    """
    surveyed = Pipeline(tuple(takewhile(lambda step: step.surveys, flat(passes))))(program)
    eligible = surveyed.fact(Eligible)
    final = dict(eligible.requested)
    if ratio is not None:
        text = named_values.write(ratio if isinstance(ratio, Mapping) else {"*": ratio})
        shares = named_ratios(surveyed, text)
        for knob in knobs(eligible, int(options.get("align") or 1)):
            final |= {g.name: knob.floor(g.size * (1 - shares[g.name])) for g in knob.groups if shares[g.name]}
    each = {group.name: Knob.of([group]) for group in eligible.groups if group.name in final}
    widths = [
        {name: knob.floor(knob.size - part * (knob.size - final[name])) for name, knob in each.items()}
        for part in parts
    ]
    unit = str(options.get("budget", "parameters"))
    budgets = [Budget.of(surveyed, (), 0, unit, {**final, **widths_of_round}) for widths_of_round in widths]
    return RoundTargets(tuple(b.removed({}) / max(b.total, 1) for b in budgets), tuple(widths))
