"""Reduction that a run reached in its budget, why it differs from the target, and limits of the destination."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from graphprune.axes.algebra import Prime
from graphprune.axes.groups import Dependencies, Group, Term
from graphprune.ir.program import Dropped, ExpertSplit, Factored, Program
from graphprune.passes.analysis.find_groups import analyze
from graphprune.passes.scores import SCORES
from graphprune.planning.destination import NAMES, Destination
from graphprune.planning.facts import Eligible
from graphprune.planning.plan import Plan

MILLI = 1e-6  # of nanoseconds


def amounts(first: Program, original: Program, program: Program, plan: Plan, unit: str) -> tuple[float, float]:
    """Amounts of a budget before and after; a latency in milliseconds.

    Args:
        first: The program from which all passes started.
        original: The program from which groups were cut, which knows the latencies of its parts.
        program: The pruned program, or the original where only a plan was made.
        plan: The plan of the cuts.
        unit: One of `planning.budget.UNITS` except parameters.
    """
    known = original.facts.get(Dependencies) or analyze(original)
    if unit not in known.terms:
        return 0.0, 0.0
    widths = {known.by_name[name].prime: float(width) for name, width in plan.widths.items()}
    if unit == "latency":
        return _sum(known.terms[unit], {}) * MILLI, _sum(known.terms[unit], widths) * MILLI
    rebuilt = Factored in program.facts or ExpertSplit in program.facts
    after = _sum(analyze(program).terms[unit], {}) if rebuilt else _sum(known.terms[unit], widths)
    return _sum(analyze(first).terms[unit], {}), after


def _sum(terms: Sequence[Term], widths: Mapping[Prime, float]) -> float:
    return sum(term.at(widths) for term in terms)


def rounding(program: Program, plan: Plan) -> str:
    """Steps in which a reduction is made, which is why no target is met exactly."""
    align, steps = int(plan.made_by.get("align", 1)), list[str]()
    if plan.groups:
        alike = " and the same in all layers" if plan.made_by.get("destination") == "stock" else ""
        except_requested = " except requested ones" if align > 1 and plan.made_by.get("requested") else ""
        steps.append(f"widths are {f'multiples of {align}' if align > 1 else 'whole numbers'}{alike}{except_requested}")
    steps += ["whole blocks are dropped"] if Dropped in program.facts else []
    steps += ["ranks are whole numbers"] if plan.ranks or Factored in program.facts else []
    steps += ["whole experts are left out"] if ExpertSplit in program.facts else []
    return ", ".join(steps)


def destination_limits(program: Program, plan: Plan, left_out: Mapping[str, str] = MappingProxyType({})) -> str:
    """Limits of a destination on a recipe, each with the destination that lacks it; empty if there are none.

    Args:
        program: The program from which groups were cut.
        plan: The plan of the cuts.
        left_out: Parts of the recipe that the destination excludes, and the destination for which they are.
    """
    eligible = program.facts.get(Eligible)
    if eligible is None or eligible.destination.name == NAMES[-1]:
        return ""
    limits = [*_limits(program, eligible, plan), *left_out.items()]
    lines = [f"{what} (destination {able} has no such limit)" for what, able in limits]
    return f"limited by destination {eligible.destination.name}: {'; '.join(lines)}" if limits else ""


def _limits(program: Program, eligible: Eligible, plan: Plan) -> Iterator[tuple[str, str]]:
    """Limits, each with the first destination that does not have it."""
    dependencies, destination = program.fact(Dependencies), eligible.destination
    score = SCORES.get(str(plan.made_by.get("score")))
    groups = score.scored(program, dependencies.groups) if score else ()
    repeated = Counter(group.kind for group in groups if group.kind not in eligible.refused)
    if destination.uniform and plan.groups and any(count > 1 for count in repeated.values()):
        yield "one width for all layers", NAMES[NAMES.index(destination.name) + 1]
    able: dict[str, dict[str, str]] = {}
    for kind, why in eligible.refused.items():
        if alike := [group for group in groups if group.kind == kind]:
            able.setdefault(_able(program, destination, alike), {}).setdefault(alike[0].label, why.partition(";")[0])
    for name, refused in able.items():
        yield f"no narrower {_listed(list(refused))}, since {next(iter(refused.values()))}", name


def _able(program: Program, destination: Destination, alike: Sequence[Group]) -> str:
    """First destination that can hold narrower groups of this kind; each can hold more than those before it."""
    more = NAMES[NAMES.index(destination.name) + 1 :]
    trials = (Destination.of(name, program, destination.dependencies) for name in more)
    return next(trial.name for trial in trials if trial.refusal(alike) is None)


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
