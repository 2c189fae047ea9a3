"""Options of a run that change the passes of a recipe: see `recipe`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any, TypeVar

from graphprune.errors import PlanError
from graphprune.passes.allocation.allocate import Allocate
from graphprune.passes.allocation.iterative import Iterative
from graphprune.passes.allocation.search import Search
from graphprune.passes.analysis.analyze import Analyze
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.calibration.gradients import Gradients
from graphprune.passes.calibration.measure_latency import MeasureLatency
from graphprune.passes.calibration.measure_routing import MeasureRouting
from graphprune.passes.depth.drop_blocks import Drop
from graphprune.passes.experts.split_experts import SplitExperts
from graphprune.passes.low_rank.allocate_ranks import AllocateRanks
from graphprune.passes.low_rank.factorize import Factorize
from graphprune.passes.low_rank.group_embeddings import GroupEmbeddings
from graphprune.passes.reconstructions.refit import Refit
from graphprune.passes.reconstructions.round_weights import RoundWeights
from graphprune.passes.rewriting.follow import Follow
from graphprune.passes.rewriting.rewrite import Rewrite
from graphprune.passes.scores.score import Score
from graphprune.passes.selection.select import Select
from graphprune.pipeline import Pass, filled, live
from graphprune.planning.facts import Refits
from graphprune.statistics.collector import Calibration
from graphprune.statistics.moments import GradientSums, OutputGradients, Statistics
from graphprune.statistics.routing import Routing
from graphprune.support import named_values
from graphprune.workflows import expert_lists

Passes = tuple[Pass, ...]
P = TypeVar("P", bound=Pass)

#: Options that are no fields, though passes have such fields, and objects of a user.
NOT_FIELDS = ("recipe", "pipeline", "score", "refit", "model", "args", "kwargs", "data", "test", "metric", "forward")
PRODUCERS: dict[type, type[Pass]] = {
    Calibration: Calibrate,
    Statistics: Calibrate,
    GradientSums: Gradients,
    Routing: MeasureRouting,
}
MOST = 8  # batches of thousands of tokens: enough for Gram matrices of gradients at outputs


def values(options: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a run by names of fields, without those that are not set."""
    named = {name: value for name, value in vars(options).items() if name not in NOT_FIELDS}
    named |= {"text": named["calibration"]} if named.get("calibration") else {}
    if named.pop("drop_experts", ""):
        named["drop"] = {**expert_lists.read(options.drop_experts), **(named["drop"] or {})}
    if options_name_groups(options) and named["sparsity"] is None and named["ratio"] is None:
        named["ratio"] = {"*": 0.0}  # no other group is cut
    named |= {name: named_values.write(value) for name, value in named.items() if isinstance(value, Mapping)}
    if getattr(options, "data", None) is not None:
        named.pop("loss")  # of a batch, not of its number
    named = {name: str(value) if isinstance(value, PurePath) else value for name, value in {**named, **more}.items()}
    named = {name: tuple(value) if isinstance(value, list) else value for name, value in named.items()}
    return {name: value for name, value in named.items() if (value is not None and not isinstance(value, str)) or value}


def options_name_groups(options: Any) -> bool:
    """Whether options name groups to cut, which only recipes that cut groups can follow."""
    return bool(getattr(options, "names_groups", False))


def flat(passes: Sequence[Pass]) -> list[Pass]:
    """Passes in the order in which they first run; iterative ones are replaced by their steps."""
    return [inner for step in passes for inner in (step.steps if isinstance(step, Iterative) else (step,))]


def with_methods(passes: Passes, recipe: str, options: Any, values: Mapping[str, Any]) -> Passes:
    """Replace the methods of a recipe, add the passes that the new ones need, and remove unused ones.

    Raises:
        PlanError: if the recipe has no pass whose method could be replaced.
    """
    score, allocation, refit = (getattr(options, name, "") for name in ("score", "allocation", "refit"))
    if score:
        passes = _replaced(passes, recipe, Score, lambda step: replace(step, by=score))
    if allocation:
        passes = _replaced(passes, recipe, Allocate, lambda step: replace(step, by=allocation))
    if refit == "none":
        passes = tuple(replace(step, refit=()) if isinstance(step, Iterative) else step
                       for step in passes if not isinstance(step, Refit))  # fmt: skip
    elif refit and any(isinstance(step, Refit) for step in passes):
        passes = _replaced(passes, recipe, Refit, lambda step: replace(step, by=refit))
    elif refit:
        at = 1 + _place(passes, recipe, Rewrite)
        passes = (*passes[:at], filled(Refit, values, by=refit), *passes[at:])
    return live(completed(passes, values)) if score or allocation or refit else passes


def _replaced(passes: Passes, recipe: str, kind: type[P], change: Callable[[P], Pass]) -> Passes:
    """Change all passes of a kind, also those inside iterative ones."""
    if not any(isinstance(step, kind) for step in flat(passes)):
        raise PlanError(f"recipe {recipe} has no pass {kind.name} whose method could be replaced")

    def changed(step: Pass) -> Pass:
        if isinstance(step, Iterative):
            return replace(step, steps=tuple(map(changed, step.steps)), refit=tuple(map(changed, step.refit)))
        return change(step) if isinstance(step, kind) else step

    return tuple(map(changed, passes))


def _place(passes: Passes, recipe: str, *kinds: type[Pass]) -> int:
    """Index of the first pass of one of the kinds."""
    at = next((i for i, step in enumerate(passes) if isinstance(step, kinds)), None)
    if at is None:
        raise PlanError(f"recipe {recipe} has no pass {kinds[0].name}")
    return at


def completed(passes: Sequence[Pass], values: Mapping[str, Any], made: Sequence[type] = ()) -> Passes:
    """Insert missing passes that gather data which later ones need."""
    known, complete = set(made), list[Pass]()
    for step in passes:
        if isinstance(step, Iterative):
            step = replace(step, steps=completed(step.steps, values, tuple(known)))
        for fact in (fact for fact in step.needs if fact in PRODUCERS):
            if fact not in known:
                own = {"most": MOST} if OutputGradients in step.needs and fact is GradientSums else {}
                new = completed([filled(PRODUCERS[fact], values, **own)], values, tuple(known))
                complete += new
                known.update(*(producer.makes for producer in new))
        complete.append(step)
        known = known.difference(step.invalidates).union(step.makes)
    return tuple(complete)


def with_rounds(passes: Passes, recipe: str, count: int | None) -> Passes:
    """Plan in `count` rounds instead of the recipe's own number.

    Raises:
        PlanError: if the recipe does not score and cut groups.
    """
    if count is None:
        return passes
    if count != 1 and not any(isinstance(step, Score) for step in flat(passes)):
        raise PlanError(f"recipe {recipe} has a single round; --shots is for recipes that score and cut groups")
    at = next((i for i, step in enumerate(passes) if isinstance(step, Iterative)), None)
    if at is not None:
        rounds = passes[at]
        assert isinstance(rounds, Iterative)
        new = (replace(rounds, rounds=count),) if count > 1 else rounds.steps
        return (*passes[:at], *new, *passes[at + 1 :])
    if count == 1:
        return passes
    start, end = _surveyed(passes, _place(passes, recipe, Score)), 1 + _place(passes, recipe, Select)
    refit = tuple(step for step in passes[end:] if isinstance(step, Refit))
    return (*passes[:start], Iterative(count, passes[start:end], refit), *passes[end:])


def _surveyed(passes: Passes, before: int) -> int:
    """Index after the last pass before `before` that surveys the program."""
    return 1 + max((i for i, step in enumerate(passes[:before]) if step.surveys), default=-1)


def with_blocks(passes: Passes, recipe: str, options: Any) -> Passes:
    """Divide the reduction between blocks and groups, in recipes that cut both; with a ratio, drop no blocks.

    Raises:
        PlanError: if the recipe does not cut both, or the share is impossible.
    """
    coarse = options.coarse
    drops = [i for i, step in enumerate(passes) if isinstance(step, Drop)]
    both = drops and any(isinstance(step, Score) for step in flat(passes))
    if coarse is not None and not both:
        raise PlanError(f"recipe {recipe} has no share for blocks to set; comp has one")
    if coarse is not None and not 0 <= coarse < 1:
        raise PlanError(f"the share of blocks in the reduction must be at least 0 and below 1, got {coarse}")
    if not both or (coarse is None and options.sparsity is not None):
        return passes
    if coarse and options.sparsity is not None:
        return tuple(replace(step, part=coarse) if isinstance(step, Drop) else step for step in passes)
    after = next(i for i, step in enumerate(passes) if i > drops[-1] and step.surveys)
    return (*passes[: _surveyed(passes, drops[0])], *passes[after + 1 :])


def with_named_blocks(passes: Passes, recipe: str, options: Any, values: Mapping[str, Any]) -> Passes:
    """Drop the blocks that the user names before everything else, or nothing else if there is no other reduction.

    Raises:
        PlanError: if the recipe chooses blocks itself.
    """
    if not options.drop_blocks:
        return passes
    if any(isinstance(step, Drop) for step in passes) and options.has_amount(apart_from="drop_blocks"):
        raise PlanError(
            f"recipe {recipe} chooses the blocks to drop, and drop_blocks names them; omit one, or set coarse=0 (comp)"
        )
    most = options.sparsity if options.budget == "parameters" else None
    first = (
        Analyze(values.get("destination", "free")),
        Drop(sparsity=most, blocks=tuple(map(str, options.drop_blocks))),
    )
    return (*first, *passes) if options.has_amount(apart_from="drop_blocks") else first


def require_groups(passes: Passes, recipe: str, options: Any) -> None:
    """Refuse names of groups for a recipe that cuts none.

    Raises:
        PlanError: if it cuts none.
    """
    if options_name_groups(options) and not any(isinstance(step, Allocate) for step in flat(passes)):
        raise PlanError(
            f"recipe {recipe} cuts no groups, which widths, drop and a ratio by name are about; choose another recipe, "
            "such as magnitude"
        )


def with_table(passes: Passes, recipe: str, options: Any) -> Passes:
    """Allocate by a table of sensitivities.

    Raises:
        PlanError: if the recipe cuts no groups, cuts blocks before, searches, or plans in rounds.
    """
    if not options.sensitivity:
        return passes
    scores = any(isinstance(step, Score) for step in passes)
    if not scores or any(isinstance(step, Iterative | Search | Drop) for step in passes):
        raise PlanError(
            f"recipe {recipe} cannot follow a table of sensitivities: that requires one score and one round for the "
            "groups of the whole model; with --shots 1 (transact) or --coarse 0 (comp) such recipes can"
        )
    refitted = any(step.by not in ("none", "bias") for step in passes if isinstance(step, Refit))
    own = {"by": "sensitivity", "table": str(options.sensitivity), "refitted": refitted}
    return tuple(replace(step, **own) if isinstance(step, Allocate) else step for step in passes)  # type: ignore[arg-type]


def with_follow(passes: Passes, recipe: str, options: Any) -> Passes:
    """Restrict the groups after each analysis to those that the module can follow.

    Raises:
        PlanError: if the recipe makes factors of a low rank, for which a module has no layers.
    """
    if not getattr(options, "follow", False) or any(isinstance(step, Follow) for step in passes):
        return passes
    if any(isinstance(step, AllocateRanks | GroupEmbeddings) for step in passes):
        raise PlanError(f"a module cannot follow the factors of recipe {recipe}; choose another, or omit follow")
    if any(isinstance(step, SplitExperts) for step in passes):
        raise PlanError(f"a module cannot follow the experts of recipe {recipe}; choose another, or omit follow")
    return tuple(each for step in passes for each in ((step, Follow()) if isinstance(step, Analyze) else (step,)))


def with_rounding(passes: Passes, recipe: str, options: Any, values: Mapping[str, Any]) -> Passes:
    """Round weights to blocks of 4 bits after the last pass that changes them.

    Raises:
        PlanError: if the recipe cuts nothing.
    """
    to = getattr(options, "rounding", "none")
    if to == "none":
        return passes
    _place(passes, recipe, Rewrite, AllocateRanks)
    at = 1 + max(i for i, step in enumerate(passes) if isinstance(step, Rewrite | Factorize) or Refits in step.makes)
    new = filled(Analyze, values), filled(RoundWeights, values, to=to)
    return completed((*passes[:at], *new, *passes[at:]), values)


def with_latency(passes: Passes, options: Any, values: Mapping[str, Any]) -> Passes:
    """Insert the measurement for a budget in latency before groups are scored."""
    scoring = next((step for step in flat(passes) if isinstance(step, Score | Search)), None)
    if options.budget != "latency" or scoring is None or any(isinstance(step, MeasureLatency) for step in passes):
        return passes
    by = scoring.by if isinstance(scoring, Score) else scoring.metrics[0]
    measure = filled(MeasureLatency, values, by=by, table=str(options.latency_table))
    at = _surveyed(passes, next(i for i, step in enumerate(passes) if scoring in flat([step])))
    return (*passes[:at], measure, *passes[at:])
