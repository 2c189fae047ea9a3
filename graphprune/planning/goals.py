"""Goals of a pruned model, such as ``perplexity <= 1.10x`` or ``size <= 100 MB``, and whether measurements meet them.

This file imports no torch, so that goals are checked before anything is loaded.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graphprune.errors import OptionError, choices

BYTES: Mapping[str, float] = {
    "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30,
}  # fmt: skip
COUNTS: Mapping[str, float] = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}
SECONDS: Mapping[str, float] = {"s": 1, "ms": 1e-3, "us": 1e-6}
RELATIVE: Mapping[str, float] = {"x": 1.0, "%": 0.01}  # shares of the dense model
RUNTIMES = ("onnxruntime", "torch")
_FORM = re.compile(r"\s*([a-z-]+)\s*(<=|>=)\s*([0-9.]+(?:e-?[0-9]+)?)\s*([a-z/%]*)(?:\s+on\s+(\S+))?\s*", re.IGNORECASE)
_EXAMPLES = "'perplexity <= 1.10x', 'accuracy >= 98 %', 'size <= 100 MB', 'kv <= 50 %' or 'decode >= 1.5x'"


@dataclass(frozen=True)
class Quantity:
    """Quantity that a goal may bound.

    `units` has absolute units with their factors; `relative` those that are shares of the dense model. A goal is an
    upper bound where less is better (`lower`); None allows both. `cost` quantities fall with the pruned share, the
    others are qualities. `exact` ones follow from the widths. `timed` ones are measured on one of `runtimes`.
    """

    meaning: str
    units: Mapping[str, float]
    relative: Mapping[str, float]
    lower: bool | None = True
    cost: bool = True
    exact: bool = True
    runtimes: tuple[str, ...] = ()


QUANTITIES: Mapping[str, Quantity] = {
    "perplexity": Quantity("perplexity on held-out windows of a text", {"": 1}, RELATIVE, cost=False, exact=False),
    "accuracy": Quantity(
        "share of right answers on held-out data", {"": 1, "%": 0.01}, {"x": 1.0}, lower=False, cost=False, exact=False
    ),
    "metric": Quantity("metric of the run on held-out data", {"": 1}, RELATIVE, lower=None, cost=False, exact=False),
    "size": Quantity("bytes of the stored weights", BYTES, RELATIVE),
    "parameters": Quantity("number of parameters", COUNTS, RELATIVE),
    "macs": Quantity("multiply-accumulates of an example input", COUNTS, RELATIVE),
    "kv": Quantity("bytes of key/value cache a token", BYTES, RELATIVE),
    "latency": Quantity("time of a call on the example inputs", SECONDS, RELATIVE, exact=False, runtimes=RUNTIMES),
    "decode": Quantity(
        "tokens a second of a decoder that continues a text", {"tokens/s": 1}, RELATIVE, lower=False, exact=False,
        runtimes=("onnxruntime",),
    ),
}  # fmt: skip
BUDGETS: Mapping[str, str] = {"macs": "macs", "kv": "kv_cache"}  # budgets in which goals are reached; else parameters


@dataclass(frozen=True)
class Goal:
    """Bound of a quantity: at most (`lower`) or at least `bound`, absolute or `relative` to the dense model."""

    text: str
    quantity: str
    lower: bool
    bound: float
    relative: bool
    runtime: str = ""

    @property
    def key(self) -> str:
        """Name of the measurement that the goal is about."""
        return f"{self.quantity} on {self.runtime}" if self.runtime else self.quantity

    @property
    def is_cost(self) -> bool:
        """Whether the quantity improves with the pruned share."""
        return QUANTITIES[self.quantity].cost

    @property
    def is_exact(self) -> bool:
        """Whether the quantity follows from the widths."""
        return QUANTITIES[self.quantity].exact

    def meets(self, value: float) -> bool:
        """Whether a value, relative to the dense model if the goal is, meets the bound."""
        return value <= self.bound if self.lower else value >= self.bound

    def shown(self, value: float) -> str:
        """A value in the units of the goal, as text."""
        if self.relative:
            return f"{value:.4g}x"
        units = {"size": "MB", "kv": "B", "latency": "ms", "accuracy": "%", "decode": "tokens/s"}
        unit = units.get(self.quantity, "")
        factor = QUANTITIES[self.quantity].units.get(unit.lower(), 1.0)
        number = f"{value / factor:,.0f}" if self.quantity in ("parameters", "macs") else f"{value / factor:.4g}"
        return f"{number} {unit}".strip()


def parse(text: str) -> Goal:
    """Goal of a text.

    Raises:
        OptionError: if the text is no goal, or no model can have such a value.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise OptionError(f"goal {text!r} is not of the form QUANTITY <= NUMBER UNIT or >=; write one as {_EXAMPLES}")
    name, sign, number, unit, runtime = (part or "" for part in match.groups())
    name, unit, lower = name.lower(), unit.lower(), sign == "<="
    if name not in QUANTITIES:
        raise OptionError(f"goal {text!r}: no quantity {name!r}; {choices(name, QUANTITIES)}")
    known = QUANTITIES[name]
    if known.lower is not None and lower != known.lower:
        right = f"{name} {'<=' if known.lower else '>='} {number} {match[4]}".rstrip()
        raise OptionError(f"goal {text!r} bounds the {known.meaning} from the wrong side; write {right!r}")
    if unit not in known.units and unit not in known.relative:
        units = ", ".join(one or "no unit" for one in (*known.relative, *known.units))
        raise OptionError(f"goal {text!r}: {name} has no unit {match[4]!r}; its units are {units}")
    if runtime and runtime not in known.runtimes:
        on = f"one of {', '.join(known.runtimes)}" if known.runtimes else "no runtime: it is not timed"
        raise OptionError(f"goal {text!r}: {name} is measured on {on}, got {runtime!r}")
    relative = unit in known.relative
    bound = _number(number, text) * (known.relative if relative else known.units)[unit]
    goal = Goal(" ".join(text.split()), name, lower, bound, relative, runtime or next(iter(known.runtimes), ""))
    _require_possible(goal)
    return goal


def parse_all(texts: Iterable[str]) -> tuple[Goal, ...]:
    """Goals of some texts, which do not repeat a quantity.

    Raises:
        OptionError: if one is no goal, or two bound one quantity.
    """
    goals: dict[tuple[str, str], Goal] = {}
    for goal in map(parse, texts):
        key = goal.quantity, goal.runtime
        if key in goals:
            raise OptionError(f"goals {goals[key].text!r} and {goal.text!r} bound one quantity; give the stricter one")
        goals[key] = goal
    return tuple(goals.values())


def budget_of(goals: Iterable[Goal]) -> str:
    """Budget in which shares of the goals are: that of the only cost that has one, else parameters."""
    costs = [goal.quantity for goal in goals if goal.is_cost]
    return BUDGETS.get(costs[0], "parameters") if len(costs) == 1 else "parameters"


def _number(text: str, goal: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"goal {goal!r}: {text!r} is no number") from None


def _require_possible(goal: Goal) -> None:
    """Refuse a bound that no pruned model can have, or that every one has.

    Raises:
        OptionError: if it is such a bound.
    """
    known, wrong = QUANTITIES[goal.quantity], ""
    if goal.bound <= 0:
        wrong = "expected a positive number"
    elif goal.quantity == "accuracy" and goal.bound > 1:
        wrong = "an accuracy is at most 100 %, and relative to the dense model it is written as 0.98x"
    elif goal.quantity == "perplexity" and not goal.relative and goal.bound < 1:
        wrong = "a perplexity is at least 1"
    elif goal.relative and known.cost and goal.lower and goal.bound >= 1:
        wrong = "the dense model meets it; give a share of the dense model below 1x"
    elif goal.relative and known.cost and not goal.lower and goal.bound <= 1:
        wrong = "the dense model meets it; give a factor above 1x"
    if wrong:
        raise OptionError(f"goal {goal.text!r} is impossible or empty: {wrong}")
