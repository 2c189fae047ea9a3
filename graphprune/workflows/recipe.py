"""From a recipe, and what a user asks of it, to the passes that do it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphprune.errors import PlanError
from graphprune.passes.allocation import ALLOCATIONS
from graphprune.passes.allocation.allocate import Allocate
from graphprune.passes.allocation.budget_check import Reach
from graphprune.passes.allocation.iterative import Iterative
from graphprune.passes.allocation.search import Search
from graphprune.passes.analysis.analyze import Analyze
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.calibration.gradients import Gradients, Loss
from graphprune.passes.calibration.measure_latency import MeasureLatency
from graphprune.passes.depth.drop_blocks import Drop
from graphprune.passes.low_rank.allocate_ranks import BUDGETS, AllocateRanks
from graphprune.passes.low_rank.factorize import Factorize
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.passes.reconstructions.bias_check import Room
from graphprune.passes.reconstructions.finetune import Tune
from graphprune.passes.reconstructions.refit import Refit
from graphprune.passes.rewriting.rewrite import Rewrite
from graphprune.passes.rotation.fuse_norms import FuseNorms
from graphprune.passes.rotation.rotate import Rotate
from graphprune.passes.scores import SCORES
from graphprune.passes.scores.score import Score
from graphprune.passes.selection.local_search import LocalSearch
from graphprune.passes.selection.select import Select
from graphprune.passes.sensitivity.measure_sensitivity import Sense
from graphprune.passes.verification.verify import Verify
from graphprune.pipeline import Pass, Pipeline

MOMENTS_FROM = 8  # batches of thousands of tokens: enough for second moments of gradients at outputs


@dataclass(frozen=True)
class Recipe:
    """A score, an allocation and a refit under one name; `statistics` are those that the refit takes, and with
    `producers` it begins with the maps that make what is cut; what it `propagates` are errors, along the residual
    stream. With `metrics` it searches among these scores, and for the calibration data. At the end it may `tune` what
    is left.

    It plans in so many `shots`, and improves the plan by so many `swaps`. With `drops`, an importance of blocks, whole
    blocks give the share `coarse` of what is to go before groups are cut. With `lowers`, lower ranks give such a share
    after the cut, where the destination can hold factors; a plan alone says widths for all of it.

    Or `drops` alone, an importance of blocks. Or `factors`: linear maps become factors of a low rank. Or
    `turns`: residual streams are rotated and cut, the ``stretches`` between branches each in its own way, or the
    ``whole`` in one.
    """

    name: str
    description: str
    source: str
    score: str = ""
    allocation: str = "uniform"
    refit: str = "none"
    statistics: str = "sequential"
    producers: bool = False
    propagates: bool = False
    tune: Tune | None = None
    drops: str = ""
    coarse: float = 0.0
    lowers: float = 0.0
    metrics: tuple[str, ...] = ()
    factors: bool = False
    shots: int = 1
    swaps: int = 0
    turns: str = ""

    @property
    def calibrates(self) -> bool:
        """Does it need calibration data?"""
        return self.plans_with_data or self.factors or self.refit != "none"

    @property
    def plans_with_data(self) -> bool:
        """Does it need calibration data for its plan?"""
        if not self.score:
            return bool(self.drops or self.turns)
        return SCORES[self.score].needs_calibration or ALLOCATIONS[self.allocation].needs_calibration

    @property
    def needs(self) -> tuple[str, ...]:
        """What it wants besides the model: calibration data, gradients of a loss on them, a package."""
        learns = bool(self.score) and (SCORES[self.score].gradients or ALLOCATIONS[self.allocation].gradients)
        learns = learns or self.tune is not None
        wanted = {"calibration": self.calibrates, "gradients": learns, "optuna": bool(self.metrics)}
        return tuple(name for name, needed in wanted.items() if needed)


@dataclass(frozen=True)
class Options:
    """What a user may ask of any recipe.

    `loss` is for those that need gradients of other than language models. A budget in ``latency`` is one on `runtime`,
    with a table that is kept in the file `latency` (see `MeasureLatency`). `trials` are those of recipes that search.
    `shots` say in how many steps a plan is made, by recipes that cut groups (see `Iterative`), and `coarse` which share
    of what is to go whole blocks give first, in recipes that do both; without them the recipe's own numbers hold.
    `sensitivity` names a table that `sensing` made: shares follow from it, and not from the recipe's own allocation.
    """

    sparsity: float | None = None
    ratio: float | None = None
    align: int = 1
    destination: str = "free"
    protect: Sequence[str] = ()
    exact_only: bool = True
    seed: int = 0
    loss: Loss | None = None
    budget: str = "parameters"
    trials: int = Search.trials
    latency: str = MeasureLatency.table
    runtime: str = MeasureLatency.runtime
    shots: int | None = None
    coarse: float | None = None
    sensitivity: str = ""


def planning(recipe: Recipe, options: Options, calibrate: Calibrate | None) -> tuple[Pass, ...]:
    """The passes of a recipe up to the plan; calibration gathers what the score asks for.

    Raises:
        PlanError: if the recipe has no such budget, or knows no shots.
    """
    if options.shots not in (None, 1) and (recipe.metrics or not recipe.score):
        raise PlanError(f"recipe {recipe.name} takes a single shot; shots are for recipes that score and cut groups")
    _require_table(recipe, options)
    analyze = Analyze(options.destination, tuple(options.protect), options.exact_only)
    first = _coarse(recipe, options, calibrate)
    if recipe.turns:
        return replace(analyze, exact_only=False), *_turning(recipe, options, calibrate or Calibrate())
    if not recipe.score:
        data = replace(calibrate or Calibrate(), moments="none")
        return analyze, *(_factoring(options, data) if recipe.factors else _dropping(recipe, options, data))
    score = SCORES[recipe.score]
    if calibrate is not None:
        searches = score.moments == "none" and ALLOCATIONS[recipe.allocation].needs_calibration
        moments = calibrate.moments if searches else score.moments
        calibrate = replace(calibrate, moments=moments, producers=score.producers)
    reach = [] if options.sparsity is None else [Reach(recipe.score, options.sparsity, options.align, options.budget)]
    measure = [MeasureLatency(recipe.score, options.runtime, options.latency)] if options.budget == "latency" else []
    return (
        analyze,
        *((*first, analyze) if first else ()),
        *measure,
        *reach,
        *([Room(recipe.refit, recipe.score)] if recipe.refit != "none" else []),
        *([calibrate] if calibrate else []),
        *choosing(recipe, options, calibrate),
    )


def _require_table(recipe: Recipe, options: Options) -> None:
    """Refuse a table of sensitivities where shares cannot follow from it.

    Raises:
        PlanError: if the recipe cuts no groups, cuts blocks before, searches, or plans in several shots.
    """
    if not options.sensitivity:
        return
    shots = recipe.shots if options.shots is None else options.shots
    if not recipe.score or recipe.metrics or shots != 1 or (recipe.drops and options.coarse != 0):
        raise PlanError(
            f"recipe {recipe.name} cannot follow a table of sensitivities: that wants one score and one shot for the "
            "groups of the whole model; with --shots 1 (transact) or --coarse 0 (comp) such recipes can"
        )


def sensing(recipe: Recipe, options: Options, calibrate: Calibrate, sense: Sense) -> Pipeline:
    """What measures how much worse the model gets when each group that a recipe cuts is cut alone.

    Raises:
        PlanError: if the recipe cuts no groups.
    """
    if not recipe.score or recipe.metrics:
        raise PlanError(f"recipe {recipe.name} does not score groups by one method; choose another, such as fasp")
    score = SCORES[recipe.score]
    analyze = Analyze(options.destination, tuple(options.protect), options.exact_only)
    data = replace(calibrate, moments=score.moments, producers=score.producers)
    return Pipeline((analyze, data, *scoring(recipe, options), sense))


def weights_only(recipe: Recipe) -> str:
    """The refit of a recipe; least squares where it has none, or one that adds biases."""
    known = RECONSTRUCTIONS[recipe.refit]
    return "least-squares" if recipe.refit == "none" or known.adds_bias else recipe.refit


def choosing(recipe: Recipe, options: Options, calibrate: Calibrate | None) -> tuple[Pass, ...]:
    """The passes between calibration and plan."""
    allocate = Allocate(recipe.allocation, options.sparsity, options.ratio, options.seed, options.budget)
    if options.sensitivity:
        allocate = replace(
            allocate, by="sensitivity", table=options.sensitivity, refitted=recipe.refit not in ("none", "bias")
        )
    steps, select = scoring(recipe, options), Select(options.align)
    swaps = [LocalSearch(recipe.swaps)] if recipe.swaps else []
    count = recipe.shots if options.shots is None else options.shots
    if count == 1:
        return *steps, allocate, select, *swaps
    again = (calibrate,) if calibrate else ()
    return Iterative(count, again, steps, allocate, select, refitting(recipe)), *swaps


def scoring(recipe: Recipe, options: Options) -> tuple[Pass, ...]:
    """The passes between calibration and allocation."""
    if recipe.metrics:
        return (
            Search(
                recipe.metrics, recipe.allocation, options.sparsity, options.ratio, options.budget, options.align,
                trials=options.trials, seed=options.seed, loss=options.loss,
            ),
        )  # fmt: skip
    score = SCORES[recipe.score]
    place = "maps" if _lowering(recipe, options) else score.gradients_of
    most = None if place == "parameters" else MOMENTS_FROM
    gradients = [Gradients(options.loss, place, most)] if score.gradients else []
    return *gradients, Score(recipe.score, options.seed)


def _coarse(recipe: Recipe, options: Options, calibrate: Calibrate | None) -> tuple[Pass, ...]:
    """What drops whole blocks before groups are cut; a plan with a `ratio` for every group leaves them alone."""
    coarse, both = recipe.coarse if options.coarse is None else options.coarse, recipe.score and recipe.drops
    if options.coarse is not None and not both:
        raise PlanError(f"recipe {recipe.name} has no share for blocks to set; comp has one")
    if not 0 <= coarse < 1:
        raise PlanError(f"the share of blocks in what is to go must be at least 0 and below 1, got {coarse}")
    if not both or coarse == 0 or options.sparsity is None:
        return ()
    part = replace(options, sparsity=coarse * options.sparsity)
    data, drop = _dropping(recipe, part, replace(calibrate or Calibrate(), moments="none"))
    return data, replace(drop, least=0)


def _dropping(recipe: Recipe, options: Options, data: Calibrate) -> tuple[Calibrate, Drop]:
    """What drops whole blocks."""
    if options.budget != "parameters":
        raise PlanError(f"recipe {recipe.name} drops blocks until enough parameters are gone, not {options.budget}")
    return data, Drop(recipe.drops, options.sparsity if options.sparsity is not None else options.ratio)


def _factoring(options: Options, data: Calibrate) -> tuple[Pass, ...]:
    """What says ranks; by density they need no data."""
    return AllocateRanks(options.sparsity, options.ratio, options.align, options.budget, tuple(options.protect)), data


def _turning(recipe: Recipe, options: Options, data: Calibrate) -> tuple[Pass, ...]:
    """What rotates streams, and says how much of them goes."""
    return (
        FuseNorms(recipe.turns == "stretches"),
        replace(data, moments="full"),
        Rotate(),
        Allocate("uniform", options.sparsity, options.ratio, options.seed, options.budget),
        Select(options.align),
    )


def _lowering(recipe: Recipe, options: Options) -> tuple[Pass, ...]:
    """What says ranks after a cut, for what is still to go."""
    if not recipe.lowers or options.sparsity is None or options.destination != "free" or options.budget not in BUDGETS:
        return ()
    protect = tuple(options.protect)
    ranks = AllocateRanks(options.sparsity, None, options.align, options.budget, protect, by="growth")
    return Analyze(options.destination, protect, options.exact_only), ranks


def cutting(recipe: Recipe, options: Options) -> tuple[Pass, ...]:
    """The passes of a recipe after the plan."""
    if not recipe.score and recipe.drops:
        return ()
    if recipe.factors:
        return (Factorize(),)
    ranks, tune = _lowering(recipe, options), [recipe.tune] if recipe.tune else []
    last = (Verify(), Factorize(), *tune) if ranks else (*tune, Verify())
    return Rewrite(), *ranks, *refitting(recipe), *last


def refitting(recipe: Recipe) -> tuple[Pass, ...]:
    """The passes that refit what is left."""
    refit = Refit(recipe.refit, recipe.statistics, producers=recipe.producers, residual=recipe.propagates)
    return () if recipe.refit == "none" else (refit,)


def pipeline(recipe: Recipe, options: Options, calibrate: Calibrate | None) -> Pipeline:
    """The whole pipeline of a recipe."""
    widths = options
    if options.sparsity is not None and _lowering(recipe, options):
        widths = replace(options, sparsity=(1 - recipe.lowers) * options.sparsity)
    return Pipeline((*planning(recipe, widths, calibrate), *cutting(recipe, options)))


def plan_only(recipe: Recipe, options: Options, calibrate: Calibrate | None) -> Pipeline:
    """What ends with a plan, which holds widths and no ranks."""
    return Pipeline(planning(replace(recipe, lowers=0.0), options, calibrate))
