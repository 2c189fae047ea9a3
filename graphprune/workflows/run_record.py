"""What a run was asked for, and what its report tells of it."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from graphprune.axes.groups import Dependencies
from graphprune.execution.equivalence import Verification
from graphprune.ir.program import Dropped, Factored, Program, Rewritten, Rotatable
from graphprune.ir.weights import broadcast_indices
from graphprune.passes.low_rank.factorize import PARTS
from graphprune.pipeline import Timings
from graphprune.planning.facts import Refits, Scores
from graphprune.planning.plan import Plan
from graphprune.reports.report import CalibrationReport, Quality, Report
from graphprune.solvers.pivoted_factors import factor_parameters
from graphprune.statistics.collector import Calibration
from graphprune.support.memory import peak_memory
from graphprune.support.resume import file_states
from graphprune.version import __version__
from graphprune.workflows.catalogue import RECIPES
from graphprune.workflows.memory_estimate import Footprint
from graphprune.workflows.option_fields import about, described, plain, words_of
from graphprune.workflows.options import PruneOptions, SensitivityOptions
from graphprune.workflows.reduction import amounts, destination_limits, rounding
from graphprune.workflows.target_needs import TargetNeeds


@dataclass(frozen=True)
class Job:
    """A run as its report describes it: its options, the command or call that repeats it, and what was measured.

    `needs` are those of its target, None where a given plan is applied; `footprint` is how it stays within its memory.
    """

    options: PruneOptions
    command: str
    needs: TargetNeeds | None = None
    quality: tuple[Quality, ...] = ()
    footprint: Footprint | None = None

    @property
    def destination(self) -> str:
        """Where the pruned model must run."""
        return self.needs.destination if self.needs else str(self.options.destination)


def build_report(job: Job, program: Program, plan: Plan, errors: Mapping[str, float], peak: int = 0) -> Report:
    """The report of a run that held `peak` bytes at most; `errors` are those of the saved files."""
    options, unit = job.options, job.options.budget
    rewritten = program.facts.get(Rewritten)
    original = rewritten.original if rewritten else program
    proof = program.facts.get(Verification)
    timings = program.facts.get(Timings, Timings())
    before, after = _sizes(_first(program)), _planned(program, plan) if options.plan_only else _sizes(program)
    return Report(
        model=str(options.model),
        recipe=options.recipe,
        destination=job.destination,
        parameters_before=sum(before.values()),
        parameters_after=sum(after.values()),
        sparsity_asked=options.sparsity,
        plan=plan.digest,
        program=plan.fingerprint,
        seed=options.seed,
        calibration=_calibration(program),
        widths=_widths(original, plan),
        labels={name: label for name, (label, _) in plan.labels.items()},
        budget=unit,
        amounts=None
        if options.budget == "parameters"
        else amounts(_first(program), original, program, plan, options.budget),
        rounding=rounding(program, plan),
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
        notes=(*_wanted(job, original, plan), *_limits(job, original, plan), *_notes(program), *_maps(program)),
        cut=not options.plan_only,
        options=plain(options) if job.needs else {},
        quality=job.quality,
        counts={name: (before.get(name, 0), after.get(name, 0)) for name in {**before, **after}},
    )


def _proved(program: Program) -> str:
    """What was compared with what."""
    return "products and their factors" if Factored in program.facts else "masked original and cut graph"


def _first(program: Program) -> Program:
    """The program from which this one came, by however many steps."""
    steps = (program.facts[kind] for kind in (Factored, Rewritten, Rotatable, Dropped) if kind in program.facts)
    latest = next(steps, None)
    return program if latest is None else _first(latest.original)


def _sizes(program: Program) -> dict[str, int]:
    """How many elements every parameter has, shared ones under one name, factors under that of their product."""
    found = {name: prod(shape) for name, shape in program.shapes().items() if name in program.parameters}
    for name in program.facts[Factored].ranks if Factored in program.facts else ():
        found[name] = sum(found.pop(f"{name}_{part}", 0) for part in PARTS)
    return found


def _planned(program: Program, plan: Plan) -> dict[str, int]:
    """How many elements a plan would leave of every parameter."""
    shapes, left = program.shapes(), _sizes(program)
    for name in plan.keep.keys() & left.keys():
        kept = {d: broadcast_indices(indices, d, len(shapes[name])).shape[d] for d, indices in plan.keep[name].items()}
        left[name] = prod(kept.get(d, n) for d, n in enumerate(shapes[name]))
    for name, rank in plan.ranks.items():
        m, n = shapes[name]
        left[name] = factor_parameters(m, n, rank)
    return left


def _calibration(program: Program) -> CalibrationReport | None:
    seen = program.facts.get(Calibration)
    return CalibrationReport(seen.source, seen.samples, seen.length, seen.sha256, seen.autocast) if seen else None


def _summed(seconds: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Seconds by pass; of passes that ran more than once the sum."""
    found: dict[str, float] = {}
    for name, value in seconds:
        found[name] = found.get(name, 0.0) + value
    return {name: round(value, 3) for name, value in found.items()}


def _widths(program: Program, plan: Plan) -> dict[str, tuple[int, int]]:
    """The size of every group before and after, if the plan cuts any."""
    groups = program.fact(Dependencies).by_name if plan.groups else {}
    return {name: (groups[name].size, width) for name, width in plan.widths.items()}


def _scores(program: Program) -> dict[str, tuple[float, ...]]:
    """The deciles of the finite scores of every group in play, to four digits."""
    steps, found = torch.linspace(0, 1, 11, dtype=torch.float64), {}
    for name, scores in program.facts.get(Scores, Scores({}, "")).by_group.items():
        finite = scores[scores.isfinite()].double()
        found[name] = tuple(float(f"{x:.4g}") for x in torch.quantile(finite, steps)) if finite.numel() else ()
    return found


def _loads_with(job: Job) -> tuple[str, ...]:
    if job.options.plan_only:
        return ("nothing: it holds a plan, for `graphprune apply`",)
    return {
        "stock": ("transformers from_pretrained, without graphprune installed",),
        "per-layer": ("graphprune.load", "transformers from_pretrained with trust_remote_code=True"),
        "free": ("graphprune.load", "torch.export.load(model.pt2)", "ONNX Runtime, if there is a folder onnx"),
    }[job.destination]


def _wanted(job: Job, original: Program, plan: Plan) -> tuple[str, ...]:
    """What the target has to say of the plan."""
    return job.needs.notes(original, plan) if job.needs else ()


def _limits(job: Job, original: Program, plan: Plan) -> tuple[str, ...]:
    """What the destination keeps the recipe from."""
    recipe = RECIPES.get(job.options.recipe)
    variants = recipe.variants if recipe and not job.options.pipeline and job.destination not in recipe.variants else {}
    able = next((name for name, text in variants.items() if "allocate-ranks" in text), "")
    limits = destination_limits(original, plan, {"no factors of a low rank": able} if able else {})
    return (limits,) if limits else ()


def _notes(program: Program) -> tuple[str, ...]:
    """What was dropped; what the refit chose, and what it left alone."""
    refits = program.facts.get(Refits)
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
    )


def _maps(program: Program) -> tuple[str, ...]:
    """What became of linear maps: rotations, ranks, and what was left as it is."""
    found, rotated = program.facts.get(Factored), program.facts.get(Rotatable)
    turned = (
        (f"rotated {len(rotated.groups)} streams, for which {len(rotated.added)} maps were added",) if rotated else ()
    )
    if found is None:
        return turned
    before, after = (sum(errors) / len(found.errors) for errors in zip(*found.errors.values(), strict=True))
    return (
        *turned,
        f"{len(found.ranks)} weights became factors of ranks {min(found.ranks.values())} to "
        f"{max(found.ranks.values())}: mean relative output error {after:.4f}, of which {before:.4f} to begin with",
        *(f"{name} was left as it is: {why}" for name, why in found.left.items()),
    )


def identity(options: PruneOptions | SensitivityOptions) -> dict[str, Any]:
    """All that the outcome of a run depends on: its options, and the files that it reads."""
    known = described(type(options)).values()
    values = {one.name: _identified(getattr(options, one.name)) for one in known if about(one).outcome}
    text = options.text if isinstance(options, SensitivityOptions) else options.calibration
    read = (options.model, str(text).split("[")[0] if text else None)
    files = file_states(*(path for path in read if isinstance(path, str | Path)))
    versions = {"version": __version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
    return {**values, **versions, "files": files}


def _identified(value: Any) -> str:
    """A value as text; tensors, which are not printed whole, by their checksums."""
    leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    numbers = [leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() for leaf in leaves]
    return f"{value}{sha256(b''.join(numbers)).hexdigest()}" if leaves else str(value)


def from_command_line() -> bool:
    """Was this process started as the command line?"""
    program = Path(sys.argv[0])
    return program.name == "graphprune" or (program.name, program.parent.name) == ("__main__.py", "graphprune")


def reproduction(name: str, options: PruneOptions) -> str:
    """The command that repeats a run, or the call from Python; options that have their default value are left out."""
    known = described(type(options))
    changed = {key: getattr(options, key) for key, one in known.items() if getattr(options, key) != one.default}
    model = changed.pop("model")
    if from_command_line():
        words = (word for key, value in changed.items() for word in words_of(known[key], value))
        return shlex.join(["graphprune", name, model, *words])
    values = (f"{key}={'...' if about(known[key]).python else repr(value)}" for key, value in changed.items())
    return f"graphprune.{name}({', '.join([repr(model), *values])})"


def command() -> str:
    """The command line of this process, if it was started as one."""
    return shlex.join(["graphprune", *sys.argv[1:]]) if from_command_line() else ""
