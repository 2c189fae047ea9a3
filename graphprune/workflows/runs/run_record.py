"""Record of a run: its options, its identity, and the report that is made of them."""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from graphprune.axes.groups import Dependencies
from graphprune.execution.output_comparison import Verification
from graphprune.huggingface.card_facts import card_facts
from graphprune.ir.checksums import checksum
from graphprune.ir.program import Dropped, ExpertSplit, Factored, Program, Rewritten, Rotatable, Trimmed
from graphprune.ir.weights import broadcast_indices
from graphprune.passes.low_rank.factor_graph import COEFFICIENTS, PARTS, ROWS
from graphprune.pipeline import Timings
from graphprune.planning.facts import Refits, RefittedNorm, RoundedWeights, Scores
from graphprune.planning.plan import Plan
from graphprune.reports.report import CalibrationReport, Quality, Report
from graphprune.solvers.pivoted_factors import factor_parameters
from graphprune.statistics.collector import Calibration
from graphprune.statistics.data_files import text_names
from graphprune.support.memory import peak_memory
from graphprune.support.resume import file_states
from graphprune.version import __version__
from graphprune.workflows.goals.goal_outcome import Reached
from graphprune.workflows.hub.hub_commit import path_of
from graphprune.workflows.memory_estimate import Footprint
from graphprune.workflows.option_fields import OptionGroup, about, described, needs_python, plain, words_of
from graphprune.workflows.options import PruneOptions, SensitivityOptions
from graphprune.workflows.recipes.catalogue import RECIPES
from graphprune.workflows.reduction import amounts, destination_limits, rounding
from graphprune.workflows.target_needs import TargetNeeds
from graphprune.workflows.trimming.trim_record import trim_note

SHOWN = 3  # groups in a note


@dataclass(frozen=True)
class Job:
    """Record of a run for its report: options, the command or call that repeats it, and measured quality.

    `needs` are those of its target, None where a saved plan is applied; `footprint` is its estimate of memory.
    """

    options: PruneOptions
    command: str
    needs: TargetNeeds | None = None
    quality: tuple[Quality, ...] = ()
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    footprint: Footprint | None = None

    @property
    def destination(self) -> str:
        """Where the pruned model must run."""
        return self.needs.destination if self.needs else str(self.options.destination)


def build_report(job: Job, program: Program, plan: Plan, errors: Mapping[str, float], peak: int = 0) -> Report:
    """Report of a run that held at most `peak` bytes; `errors` are those of the saved files."""
    options, reached = job.options, program.facts.get(Reached)
    unit = _unit(program, reached.budget if reached else options.budget)
    original, proof = _original(program), program.facts.get(Verification)
    timings = program.facts.get(Timings, Timings())
    before, after = _sizes(_first(program)), planned_sizes(program, plan) if options.plan_only else _sizes(program)
    return Report(
        model=name_of(options.model),
        recipe=options.recipe,
        destination=job.destination,
        parameters_before=sum(before.values()),
        parameters_after=sum(after.values()),
        sparsity_asked=reached.share if reached else options.sparsity,
        plan=plan.digest,
        program=plan.fingerprint,
        seed=options.seed,
        calibration=_calibration(program),
        widths=_widths(original, plan),
        labels={name: label for name, (label, _) in plan.labels.items()},
        budget=unit,
        amounts=_amounts(program, original, plan, unit),
        rounding=rounding(program, plan),
        constants=program.constants,
        scores=_scores(program),
        seconds=_summed(timings.seconds),
        memory=dict(timings.memory),
        peak_memory=peak_memory(),
        anonymous_memory=peak,
        estimated_memory=job.footprint.peak if job.footprint else 0,
        errors={**({_proved(program): proof.max_error} if proof else {}), **errors},
        loads_with=_loads_with(job),
        command=job.command,
        version=__version__,
        notes=(
            *(reached.notes() if reached else ()),
            *_target_notes(job, original, plan),
            *_limits(job, original, plan),
            *_proof_notes(proof),
            *_refit_notes(program),
            *(*_factor_notes(program), *_expert_notes(program)),
        ),
        cut=not options.plan_only,
        **asdict(card_facts(options.model, options.revision)),
        options=plain(options) if job.needs else {},
        quality=job.quality,
        metrics=job.metrics,
        goals=reached.outcomes() if reached else (),
        counts={name: (before.get(name, 0), after.get(name, 0)) for name in {**before, **after}},
    )


def _unit(program: Program, budget: str) -> str:
    """Budget to report: a split into experts removes no parameters."""
    return "macs" if ExpertSplit in program.facts and budget == "parameters" else budget


def _amounts(program: Program, original: Program, plan: Plan, unit: str) -> tuple[float, float] | None:
    """Amounts of a budget other than parameters, before and after."""
    return None if unit == "parameters" else amounts(_first(program), original, program, plan, unit)


def _original(program: Program) -> Program:
    """Program from which groups were cut; the program itself if none were."""
    rewritten = program.facts.get(Rewritten)
    return rewritten.original if rewritten else program


def name_of(model: object) -> str:
    """Name of a model: its path, or the class of a module in memory."""
    return str(model) if isinstance(model, str | Path) else type(model).__name__


def _proof_notes(proof: Verification | None) -> tuple[str, ...]:
    """Outputs and indices about which the proof shows nothing."""
    blind, unseen = (proof.blind, proof.unseen) if proof else ((), ())
    notes = [f"the proof shows nothing about {', '.join(blind)}: all numbers are the same, or none is finite"] * bool(
        blind
    )
    if unseen:
        rest = f" and {len(unseen) - SHOWN} more groups" * (len(unseen) > SHOWN)
        names = f"{', '.join(unseen[:SHOWN])}{rest}"
        notes.append(f"the proof shows nothing about {names}: they are zero in all cases, as behind an inactive ReLU")
    return tuple(notes)


def _proved(program: Program) -> str:
    """Name of the comparison that the verification made."""
    if ExpertSplit in program.facts:
        return "masked dense layers and their experts"
    return "products and their factors" if Factored in program.facts else "masked original and cut graph"


def _first(program: Program) -> Program:
    """Original program that all passes started from."""
    kinds = (ExpertSplit, Factored, Rewritten, Rotatable, Dropped, Trimmed)
    steps = (program.facts[kind] for kind in kinds if kind in program.facts)
    latest = next(steps, None)
    return program if latest is None else _first(latest.original)


def _sizes(program: Program) -> dict[str, int]:
    """Elements of every parameter; a shared one has one name, and factors have that of their product."""
    sizes = {name: prod(shape) for name, shape in program.shapes().items() if name in program.parameters}
    for name, parts in program.facts[ExpertSplit].parts.items() if ExpertSplit in program.facts else ():
        sizes[name] = sum(sizes.pop(part) for part in parts)
    for name in program.facts[Factored].ranks if Factored in program.facts else ():
        sizes[name] = sum(sizes.pop(f"{name}_{part}", 0) for part in PARTS)
    for name, groups in program.facts[Factored].tables.items() if Factored in program.facts else ():
        parts = [f"{name}_{ROWS}", *(f"{name}_{COEFFICIENTS}_{i}" for i in range(len(groups)))]
        sizes[name] = sum(sizes.pop(part, 0) for part in parts)
    return sizes


def planned_sizes(program: Program, plan: Plan) -> dict[str, int]:
    """Elements of every parameter after a plan that is not applied yet."""
    shapes, sizes = program.shapes(), _sizes(program)
    for name in plan.keep.keys() & sizes.keys():
        widths = {
            d: broadcast_indices(indices, d, len(shapes[name])).shape[d] for d, indices in plan.keep[name].items()
        }
        sizes[name] = prod(widths.get(d, n) for d, n in enumerate(shapes[name]))
    for name, rank in plan.ranks.items():
        m, n = shapes[name]
        sizes[name] = factor_parameters(m, n, rank)
    for name, groups in plan.tables.items():
        sizes[name] = sum(factor_parameters(rows, shapes[name][1], rank) if rank < min(rows, shapes[name][1])
                          else rows * shapes[name][1] for rows, rank in groups)  # fmt: skip
    return sizes


def _calibration(program: Program) -> CalibrationReport | None:
    data = program.facts.get(Calibration)
    return CalibrationReport(data.source, data.samples, data.length, data.sha256, data.autocast) if data else None


def _summed(seconds: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Seconds by pass, summed over passes that ran more than once."""
    total: dict[str, float] = {}
    for name, value in seconds:
        total[name] = total.get(name, 0.0) + value
    return {name: round(value, 3) for name, value in total.items()}


def _widths(program: Program, plan: Plan) -> dict[str, tuple[int, int]]:
    """Size of every group before and after, if the plan cuts any."""
    groups = program.fact(Dependencies).by_name if plan.groups else {}
    return {name: (groups[name].size, width) for name, width in plan.widths.items()}


def _scores(program: Program) -> dict[str, tuple[float, ...]]:
    """Deciles of the finite scores of every scored group, to four digits."""
    steps, deciles = torch.linspace(0, 1, 11, dtype=torch.float64), {}
    for name, scores in program.facts.get(Scores, Scores({}, "")).by_group.items():
        finite = scores[scores.isfinite()].double()
        deciles[name] = tuple(float(f"{x:.4g}") for x in torch.quantile(finite, steps)) if finite.numel() else ()
    return deciles


def _loads_with(job: Job) -> tuple[str, ...]:
    if job.options.plan_only:
        return ("nothing: it holds a plan, for `graphprune apply`",)
    return {
        "stock": ("transformers from_pretrained, without graphprune installed",),
        "per-layer": ("graphprune.load", "transformers from_pretrained with trust_remote_code=True"),
        "free": ("graphprune.load", "torch.export.load(model.pt2)", "ONNX Runtime, if there is a folder onnx"),
    }[job.destination]


def _target_notes(job: Job, original: Program, plan: Plan) -> tuple[str, ...]:
    """Notes of the target on the plan, and on a trim before it."""
    trimmed = trim_note(original) if job.options.trim else ()
    return (*trimmed, *job.needs.notes(original, plan)) if job.needs else trimmed


def _limits(job: Job, original: Program, plan: Plan) -> tuple[str, ...]:
    """Parts of the recipe that the destination cannot hold, and kinds of groups that the module cannot follow."""
    recipe = RECIPES.get(job.options.recipe)
    variants = recipe.variants if recipe and not job.options.pipeline and job.destination not in recipe.variants else {}
    able = next((name for name, text in variants.items() if "allocate-ranks" in text), "")
    limits = destination_limits(original, plan, {"no factors of a low rank": able} if able else {})
    wide = (f"not cut, since the module cannot follow: {kind} - {why}" for kind, why in plan.wide.items())
    return (*([limits] if limits else ()), *wide)


def _refit_notes(program: Program) -> tuple[str, ...]:
    """Dropped blocks; damping and errors of the refit, and the weights that it skipped."""
    refits = program.facts.get(Refits)
    later = (program.facts.get(fact) for fact in (RefittedNorm, RoundedWeights))
    dropped = (f"dropped {', '.join(program.fact(Dropped).blocks)}",) if Dropped in program.facts else ()
    if refits is None:
        return dropped
    done = refits.by_weight.values()
    before, after = (sum(getattr(r, f) for r in done) / max(len(done), 1) for f in ("error_before", "error_after"))
    chosen = sorted({r.damping for r in done})
    skipped = tuple(f"{name} was not refitted: {why}" for name, why in refits.skipped.items())
    return (
        *dropped,
        f"refitted {len(done)} weights with damping {chosen}: mean relative output error {before:.4f} -> {after:.4f}",
        *skipped,
        *(note for fact in later if fact for note in fact.notes()),
    )


def _factor_notes(program: Program) -> tuple[str, ...]:
    """Rotations, ranks of factors, and the linear layers that were not factorized."""
    factors, rotated = program.facts.get(Factored), program.facts.get(Rotatable)
    rotations = (
        (f"rotated {len(rotated.groups)} residual streams, which added {len(rotated.added)} linear layers",)
        if rotated
        else ()
    )
    if factors is None:
        return rotations
    return (
        *rotations,
        *_rank_notes(factors),
        *(f"{name} was not factorized: {why}" for name, why in factors.left.items()),
    )


def _rank_notes(factors: Factored) -> Iterator[str]:
    """Ranks of linear layers and of groups of rows of embedding tables."""
    if factors.ranks:
        before, after = (sum(errors) / len(factors.errors) for errors in zip(*factors.errors.values(), strict=True))
        low, high = min(factors.ranks.values()), max(factors.ranks.values())
        yield (
            f"{len(factors.ranks)} weights became factors of ranks {low} to {high}: mean relative output error "
            f"{after:.4f}, of which {before:.4f} before the fit"
        )
    for name, groups in factors.tables.items():
        ranks = ", ".join(str(rank) for _, rank in groups)
        yield f"{name} became {len(groups)} groups of rows, the most frequent first, of ranks {ranks}"


def _expert_notes(program: Program) -> Iterator[str]:
    """Experts of feed-forward layers, and the layers that were not split."""
    split = program.facts.get(ExpertSplit)
    if split is None:
        return
    first = next(iter(split.sizes.values()))
    active = sorted({sizes.active for sizes in split.sizes.values()})
    before, after = (sum(errors) / len(split.errors) for errors in zip(*split.errors.values(), strict=True))
    yield (
        f"split {len(split.sizes)} feed-forward layers into {first.experts} experts, of which a token takes "
        f"{' or '.join(map(str, active))}: mean relative output error {before:.4f} -> {after:.4f} by the refit"
    )
    yield from (f"{name} was not split into experts: {why}" for name, why in split.left.items())


def identity(options: PruneOptions | SensitivityOptions) -> dict[str, Any]:
    """Identity of a run of pruning, or of a measurement; see `identity_of`."""
    text = options.text if isinstance(options, SensitivityOptions) else options.calibration
    texts = (text, getattr(options, "text", None), getattr(options, "labelled", None))
    model = path_of(options, options.model) if isinstance(options.model, str | Path) else None
    names = (name for one in texts if one for name in text_names(str(one)))
    read = (model, *(name.split("[")[0] for name in names))
    return identity_of(options, [path for path in read if path is not None])


def identity_of(options: OptionGroup, read: Sequence[str | Path]) -> dict[str, Any]:
    """Identity of a run, which its outcome depends on: options, versions, and the files that it reads."""
    known = described(type(options)).values()
    values = {one.name: _identified(getattr(options, one.name)) for one in known if about(one).outcome}
    versions = {"version": __version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
    return {**values, **versions, "files": file_states(*read)}


def _identified(value: Any) -> str:
    """Value as text; tensors, which are not printed whole, as a checksum."""
    leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    return f"{value}{checksum(leaves)}" if leaves else str(value)


def from_command_line() -> bool:
    """Whether this process is the command line program."""
    program = Path(sys.argv[0])
    return program.name == "graphprune" or (program.name, program.parent.name) == ("__main__.py", "graphprune")


def reproduction(name: str, options: OptionGroup) -> str:
    """Command or call from Python that repeats a run, without options that have their default value."""
    known = described(type(options))
    changed = {key: value for key, one in known.items() if (value := getattr(options, key)) is not one.default
               and (needs_python(one, value) or value != one.default)}  # fmt: skip
    model: Any = changed.pop(next(key for key, one in known.items() if not one.kw_only))
    shown = repr(model) if isinstance(model, str) else f"{name_of(model)}(...)"
    if from_command_line() and isinstance(model, str):
        words = (word for key, value in changed.items() for word in words_of(known[key], value))
        return shlex.join(["graphprune", name, model, *words])
    values = (f"{key}={'...' if needs_python(known[key], value) else repr(value)}" for key, value in changed.items())
    return f"graphprune.{name}({', '.join([shown, *values])})"


def command() -> str:
    """Command line of this process; empty in a Python session."""
    return shlex.join(["graphprune", *sys.argv[1:]]) if from_command_line() else ""
