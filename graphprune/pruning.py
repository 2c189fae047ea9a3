"""The whole job: load, prune, prove, save, report."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import psutil

from graphprune import assembly, free
from graphprune.atomic import check_output, new_folder
from graphprune.budget import UNITS
from graphprune.calibration import Calibration
from graphprune.dependencies import Dependencies
from graphprune.destinations import NAMES
from graphprune.errors import CalibrationError
from graphprune.exporters import huggingface
from graphprune.exporters.folders import require_apart
from graphprune.facts import Refits
from graphprune.frontends.loading import load
from graphprune.low_rank import size
from graphprune.passes.analyze import Analyze
from graphprune.passes.calibrate import Calibrate
from graphprune.passes.drop import drop
from graphprune.passes.gradients import Loss
from graphprune.passes.measure import Measure
from graphprune.passes.rewrite import Rewrite
from graphprune.passes.search import Search
from graphprune.passes.verify import Verify
from graphprune.pipeline import Pipeline, Timings
from graphprune.plans import Plan
from graphprune.program import Dropped, Factored, Program, Rewritten, Rotatable
from graphprune.proof import Verification
from graphprune.recipes import RECIPES
from graphprune.report import Calibration as CalibrationReport
from graphprune.report import Report
from graphprune.targets import Wanted
from graphprune.version import __version__
from graphprune.weights import beside


@dataclass(frozen=True)
class Result:
    """The outcome of a run: the report, the plan, and the pruned program (None if only a plan was made)."""

    report: Report
    plan: Plan
    program: Program | None


@dataclass(frozen=True)
class Job:
    """What was asked for, as far as a report tells of it."""

    model: str
    output: Path
    recipe: str
    destination: str
    sparsity: float | None = None
    seed: int = 0
    force: bool = False
    command: str = ""
    plan_only: bool = False
    budget: str = "parameters"
    wanted: Wanted | None = None


def prune(
    model: str | Path,
    *,
    output: str | Path,
    recipe: str = "fasp",
    sparsity: float,
    calibration: str | Path | None = None,
    samples: int = 128,
    length: int = 512,
    autocast: bool = False,
    target: str | None = None,
    align: int | None = None,
    destination: str | None = None,
    protect: tuple[str, ...] = (),
    exact_only: bool = True,
    seed: int = 0,
    budget: str = "parameters",
    plan_only: bool = False,
    force: bool = False,
    loss: Loss | None = None,
    trials: int = Search.trials,
    latency: str | Path = Measure.table,
    runtime: str = Measure.runtime,
    shots: int | None = None,
    coarse: float | None = None,
) -> Result:
    """Prune a model and save it, verified, with a report.

    `model` is whatever `load` takes; `sparsity` the share of all its parameters that is to go, or of another `budget`;
    `calibration` names a text (see `corpus.read` and `Calibrate`). `target` is what the model will be exported to; it
    decides about `destination` and `align`, where they are not given (``stock`` and 8 without it). `exact_only` leaves
    out groups whose cut changes what remains. For the others see `assembly.Options`. `output` appears when all in it
    was verified, or not at all.

    Raises:
        GraphpruneError: one of its kinds, with what, where, got, expected and what to do.
    """
    chosen, wanted = RECIPES[recipe], Wanted.of(target, destination, align)
    check_output(output, force)
    calibrate = Calibrate(str(calibration), samples, length, seed, autocast=autocast) if chosen.calibrates else None
    if calibrate and not calibration:
        raise CalibrationError(f"recipe {recipe} needs calibration data; name a text (--calibration FILE)")
    program, where = wanted.accepted(load(model)), wanted.destination
    options = assembly.Options(
        sparsity, None, wanted.align_of(program), where, protect, exact_only, seed, loss, budget, trials, str(latency),
        runtime, shots, coarse,
    )  # fmt: skip
    program = (assembly.plan_only if plan_only else assembly.pipeline)(chosen, options, calibrate)(program)
    asked = recipe, where, sparsity, seed, force, _command(), plan_only, budget, wanted
    return _save(Job(str(model), Path(output), *asked), program, partial(write, program, destination=where))


def apply_plan(model: str | Path, plan: str | Path, *, output: str | Path, force: bool = False) -> Result:
    """Cut a model as a saved plan says, and save it as `prune` does.

    Raises:
        GraphpruneError: one of its kinds.
    """
    chosen = Plan.load(plan)
    chosen.require_cuts()
    check_output(output, force)
    destination = str(chosen.made_by.get("destination", "free"))
    job = Job(str(model), Path(output), f"plan {plan}", destination, force=force, command=_command())
    whole = load(model)
    program = (drop(whole, chosen.blocks) if chosen.blocks else whole).with_facts(chosen)
    if chosen.groups or not chosen.blocks:
        start = Analyze(destination if destination in NAMES else "free")(program)
        program = Pipeline((Rewrite(), Verify()), given=(Plan, Dependencies))(start)
    return _save(job, program, lambda folder: write(program, folder, destination))


def write(program: Program, folder: Path, destination: str) -> list[tuple[str, float]]:
    """Fill a folder for a destination; return what was compared in it, and how far it was apart.

    Raises:
        ExportError: if the destination cannot hold the program, or what was written does not agree with it.
    """
    if destination == "free":
        return free.write(program, folder)
    report = huggingface.write(program, folder, destination=destination)  # type: ignore[arg-type]
    return [("reloaded folder and rewritten graph", float(report.facts["error"]["relative"]))]


def _save(job: Job, program: Program, fill: Callable[[Path], list[tuple[str, float]]]) -> Result:
    """Fill a folder, add plan and report, and give it its name."""
    plan = program.fact(Plan)
    if program.source is not None:
        require_apart(program.source.path, job.output)
    with new_folder(job.output, job.force) as folder:
        errors = [] if job.plan_only else fill(folder)
        plan.save(folder / "plan.json")
        report = _report(job, program, plan, dict(errors))
        report.save(folder)
    return Result(report, plan, None if job.plan_only else program)


def _report(job: Job, program: Program, plan: Plan, errors: dict[str, float]) -> Report:
    rewritten = program.facts.get(Rewritten)
    original = rewritten.original if rewritten else program
    proof = program.facts.get(Verification)
    return Report(
        model=job.model,
        recipe=job.recipe,
        destination=job.destination,
        parameters_before=_first(program).count(),
        parameters_after=program.count() - _planned(program, plan) if job.plan_only else program.count(),
        sparsity_asked=job.sparsity,
        plan=plan.digest,
        program=plan.fingerprint,
        seed=job.seed,
        calibration=_calibration(program),
        widths=_widths(original, plan),
        seconds=_seconds(program),
        peak_memory=peak_memory(),
        errors={**({_proved(program): proof.max_error} if proof else {}), **errors},
        loads_with=_loads_with(job),
        command=job.command,
        version=__version__,
        notes=(*_asked(job), *_wanted(job, original, plan), *_notes(program), *_maps(program)),
        cut=not job.plan_only,
    )


def _proved(program: Program) -> str:
    """What was compared with what."""
    return "products and their factors" if Factored in program.facts else "masked original and cut graph"


def _first(program: Program) -> Program:
    """The program from which this one came, by however many steps."""
    steps = (program.facts[kind] for kind in (Factored, Rewritten, Rotatable, Dropped) if kind in program.facts)
    latest = next(steps, None)
    return program if latest is None else _first(latest.original)


def _planned(program: Program, plan: Plan) -> int:
    """How many parameters a plan would remove."""
    shapes = program.shapes()
    left = 0
    for name in plan.keep.keys() & program.parameters:
        kept = {d: beside(indices, d, len(shapes[name])).shape[d] for d, indices in plan.keep[name].items()}
        shape = [kept.get(d, n) for d, n in enumerate(shapes[name])]
        left += prod(shapes[name]) - prod(shape)
    for name, rank in plan.ranks.items():
        m, n = shapes[name]
        left += m * n - size(m, n, rank)
    return left


def _calibration(program: Program) -> CalibrationReport | None:
    seen = program.facts.get(Calibration)
    return CalibrationReport(seen.source, seen.samples, seen.length, seen.sha256, seen.autocast) if seen else None


def _seconds(program: Program) -> dict[str, float]:
    return {name: round(seconds, 3) for name, seconds in program.facts.get(Timings, Timings()).seconds}


def _widths(program: Program, plan: Plan) -> dict[str, tuple[int, int]]:
    """The size of every group before and after, if the plan cuts any."""
    groups = program.fact(Dependencies).by_name if plan.groups else {}
    return {name: (groups[name].size, width) for name, width in plan.widths.items()}


def _loads_with(job: Job) -> tuple[str, ...]:
    if job.plan_only:
        return ("nothing: it holds a plan, for `graphprune apply`",)
    return {
        "stock": ("transformers from_pretrained, without graphprune installed",),
        "per-layer": ("graphprune.load", "transformers from_pretrained with trust_remote_code=True"),
        "free": ("graphprune.load", "torch.export.load(model.pt2)", "ONNX Runtime, if there is a folder onnx"),
    }[job.destination]


def _asked(job: Job) -> tuple[str, ...]:
    return () if job.budget == "parameters" else (f"the sparsity that was asked for is one of {UNITS[job.budget]}",)


def _wanted(job: Job, original: Program, plan: Plan) -> tuple[str, ...]:
    """What the target has to say of the plan."""
    return job.wanted.notes(original, plan) if job.wanted else ()


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


def peak_memory() -> int:
    """The most memory that this process ever held, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # there is none on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _command() -> str:
    """The command line that reproduces the run, if it was one."""
    name = Path(sys.argv[0]).name
    return shlex.join(["graphprune", *sys.argv[1:]]) if name in ("graphprune", "__main__.py") else ""
