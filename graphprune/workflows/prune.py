"""The whole job: load, prune, prove, save, report."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from graphprune.axes.groups import Dependencies
from graphprune.errors import CalibrationError, ExportError, PlanError, WorkspaceError, choices
from graphprune.evaluation.perplexity import PerplexityTest
from graphprune.exporters.checks.reloading import Destination
from graphprune.exporters.model_folders import folder_writer
from graphprune.exporters.model_folders.folder_files import require_apart
from graphprune.frontends.huggingface import load as capture
from graphprune.frontends.loading import load
from graphprune.ir.program import Program
from graphprune.ir.weight_files import MAX_SHARD_BYTES
from graphprune.passes.allocation import ALLOCATIONS
from graphprune.passes.allocation.search import Search
from graphprune.passes.analysis.analyze import Analyze
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.calibration.gradients import Loss
from graphprune.passes.calibration.measure_latency import MeasureLatency
from graphprune.passes.depth.drop_blocks import drop
from graphprune.passes.rewriting.rewrite import Rewrite
from graphprune.passes.verification.verify import Verify
from graphprune.pipeline import Pipeline
from graphprune.planning.destination import NAMES
from graphprune.planning.plan import FILE as PLAN
from graphprune.planning.plan import Plan
from graphprune.reports.report import Quality, Report, digests
from graphprune.support import distributed
from graphprune.support.atomic_output import check_output, new_folder, remove_unfinished
from graphprune.support.memory import Peak, return_freed_memory, watch_peak
from graphprune.support.resume import file_states, note_outcome, remove_leftovers, resumable
from graphprune.support.workspace import MEMORY_BYTES
from graphprune.version import __version__
from graphprune.workflows import free_destination, memory_estimate
from graphprune.workflows import recipe as assembly
from graphprune.workflows.catalogue import RECIPES
from graphprune.workflows.run_record import Job, call, command, tell
from graphprune.workflows.target_needs import Wanted

log = logging.getLogger("graphprune.run")
SHARE = 4  # a saved model is checked as its users load it, in float32 beside the graph, if it takes no more of memory
ELSEWHERE = ("force", "scratch", "restart")  # options that the outcome does not depend on


@dataclass(frozen=True)
class Result:
    """The outcome of a run: the report, the plan, and the pruned program (None if only a plan was made)."""

    report: Report
    plan: Plan
    program: Program | None


def prune(
    model: str | Path, *, output: str | Path, recipe: str = "fasp", sparsity: float,
    calibration: str | Path | None = None, samples: int = 128, length: int = 512, autocast: bool = False,
    target: str | None = None, align: int | None = None, destination: str | None = None, protect: tuple[str, ...] = (),
    exact_only: bool = True, seed: int = 0, budget: str = "parameters", plan_only: bool = False, force: bool = False,
    loss: Loss | None = None, trials: int = Search.trials, latency: str | Path = MeasureLatency.table,
    runtime: str = MeasureLatency.runtime, shots: int | None = None, coarse: float | None = None,
    sensitivity: str | Path = "", evaluate: Sequence[str | Path] = (), windows: int = 64, device: str = "cpu",
    memory: str | None = None, scratch: str | Path | None = None, restart: bool = False,
) -> Result:  # fmt: skip
    """Prune a model and save it, verified, with a report.

    `model` is whatever `load` takes; `sparsity` the share of all its parameters that is to go, or of another `budget`;
    `calibration` names a text (see `corpus.read` and `Calibrate`). `target` is what the model will be exported to; it
    decides about `destination` and `align`, where they are not given (``stock`` and 8 without it). `exact_only` leaves
    out groups whose cut changes what remains. On the first `windows` of the texts that `evaluate` names, the perplexity
    is measured before and after. For the others see `assembly.Options`. `output` appears when all in it was verified.

    Activations of the calibration samples, and what was finished, lie in a folder beside `output`, or in `scratch`; a
    run that was killed goes on from there when it is repeated, unless `restart` is set. `device` runs the segments of
    the calibration. `memory`, such as ``4GiB``, is what the run may take at most (see `footprint`). Started by
    ``torchrun``, every process runs a share of the calibration, and the first one saves.

    Raises:
        GraphpruneError: one of its kinds, with what, where, got, expected and what to do.
    """
    given = locals()
    wanted = Wanted.of(target, destination, align)
    work = Work(_same(given), scratch, restart, device, memory)
    remove_leftovers(work.beside(Path(output)), Path(output))
    check_output(output, force)
    options = assembly.Options(
        sparsity, None, 1, wanted.destination, protect, exact_only, seed, loss, budget, trials, str(latency), runtime,
        shots, coarse, str(sensitivity),
    )  # fmt: skip
    data = Calibrate("", samples, length, seed, autocast=autocast, device=device)
    calibrate = _calibrate(recipe, calibration, data)
    said = command() or call(prune, given)
    asked = recipe, wanted.destination, sparsity, seed, force, said, plan_only, budget, wanted
    examine = partial(PerplexityTest.of, texts=evaluate, length=length, count=windows)
    return _run(Job(str(model), Path(output), *asked), options, calibrate, examine, work)


@dataclass(frozen=True)
class Work:
    """Where and how a run works; `asked` is all that its outcome depends on."""

    asked: Mapping[str, Any]
    scratch: str | Path | None
    restart: bool
    device: str
    memory: str | None

    @property
    def limit(self) -> int:
        """The bytes of memory that may be taken."""
        return memory_estimate.parse(self.memory) if self.memory else psutil.virtual_memory().available

    def beside(self, output: Path) -> Path:
        """The folder of a run with this output."""
        return Path(self.scratch) / f"{output.name}.run" if self.scratch else output.parent / f".{output.name}.run"


def _calibrate(recipe: str, text: str | Path | None, data: Calibrate) -> Calibrate | None:
    """What a recipe looks at, if it looks at anything."""
    if not RECIPES[recipe].calibrates:
        return None
    if not text:
        raise CalibrationError(f"recipe {recipe} needs calibration data; name a text (--calibration FILE)")
    return replace(data, text=str(text))


def _run(
    job: Job,
    options: assembly.Options,
    calibrate: Calibrate | None,
    examine: Callable[[Program], PerplexityTest],
    work: Work,
) -> Result:
    """Load, measure, prune, measure, save."""
    assert job.wanted is not None
    program = job.wanted.accepted(load(job.model))
    exam, recipe = examine(program), RECIPES[job.recipe]
    if job.plan_only and exam.windows:
        raise PlanError("a plan alone is no model that can be evaluated; leave out --plan-only or --evaluate")
    options = replace(options, align=job.wanted.align_of(program))
    steps = partial(assembly.plan_only if job.plan_only else assembly.pipeline, recipe, options)
    if work.memory:
        job = replace(job, room=_room(program, steps(calibrate), job, options, calibrate, work))
    if job.room and calibrate:
        calibrate = replace(calibrate, tokens=job.room.tokens)
    passes, (spill, hold) = steps(calibrate), (job.room.spill, 0) if job.room else (None, MEMORY_BYTES)
    with distributed.joined(work.device), watch_peak() as peak:
        asked = {**work.asked, "processes": distributed.world_size()}
        with resumable(work.beside(job.output), asked, work.restart, spill, hold):
            distributed.barrier()  # all of them have seen that the output is free
            if distributed.rank() == 0:
                remove_unfinished(job.output)
            before = exam.perplexities(program)
            program = passes(program)
            after = {} if job.plan_only else exam.perplexities(program)
            job = replace(job, quality=tuple(_quality(exam, text, before, after) for text in after))
            fill = partial(write, program, destination=job.destination, limit=work.limit // SHARE)
            return _save(job, program, fill, peak)


def _quality(exam: PerplexityTest, text: str, before: Mapping[str, float], after: Mapping[str, float]) -> Quality:
    values = (found[text] if math.isfinite(found[text]) else None for found in (before, after))
    return Quality(text, *exam.windows[text].shape, *values)


def _room(
    program: Program, steps: Pipeline, job: Job, options: assembly.Options, calibrate: Calibrate | None, work: Work
) -> memory_estimate.Footprint:
    """How the run stays below its limit.

    Raises:
        WorkspaceError: if it cannot.
    """
    recipe, greedy = RECIPES[job.recipe], [step.name for step in steps.passes if not step.memory_bounded]
    greedy += [f"allocate{{by={recipe.allocation}}}"] if ALLOCATIONS[recipe.allocation].needs_calibration else []
    if greedy:
        raise WorkspaceError(
            f"recipe {recipe.name} runs the whole model at once in {', '.join(greedy)}, so that --memory cannot be "
            "promised; take a recipe that does not, such as fasp, liar, flap or wanda-sp, or leave --memory out"
        )
    return_freed_memory()
    analysed = Analyze(options.destination, tuple(options.protect), options.exact_only)(program)
    length = calibrate.length if calibrate else 1
    found = memory_estimate.within(analysed, length, work.limit, recipe.refit != "none", recipe.statistics == "mixed")
    log.info("memory: %s", found)
    return found


def _same(asked: Mapping[str, Any]) -> dict[str, Any]:
    """All that the outcome of a run depends on: its options, and the files that it reads."""
    options = {name: str(value) for name, value in asked.items() if name not in ELSEWHERE}
    text = str(asked["calibration"] or "").split("[")[0]
    versions = {"version": __version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
    return {**options, **versions, "files": file_states(asked["model"], text or None)}


def apply_plan(model: str | Path, plan: str | Path, *, output: str | Path, force: bool = False) -> Result:
    """Cut a model by a saved plan, a file or the folder of a run, and save it as `prune` does.

    Raises:
        GraphpruneError: one of its kinds.
    """
    chosen = Plan.load(plan)
    chosen.require_cuts()
    check_output(output, force)
    destination = str(chosen.made_by.get("destination", "free"))
    job = Job(str(model), Path(output), f"plan {plan}", destination, force=force, command=command())
    whole = load(model)
    program = (drop(whole, chosen.blocks) if chosen.blocks else whole).with_facts(chosen)
    if chosen.groups or not chosen.blocks:
        start = Analyze(destination if destination in NAMES else "free")(program)
        program = Pipeline((Rewrite(), Verify()), given=(Plan, Dependencies))(start)
    return _save(job, program, lambda folder: write(program, folder, destination))


def write(
    program: Program, folder: Path, destination: str, *, limit: int | None = None, shard_bytes: int = MAX_SHARD_BYTES
) -> list[tuple[str, float]]:
    """Fill a folder for a destination; return what was compared in it, and how far it was apart.

    Weights go to files of at most `shard_bytes`, one in memory at a time, and a model of more than `limit` bytes in
    float32 is checked in parts. Destination free is not bounded so: its graph is saved with all weights in memory, at
    least twice, whatever the limit.

    Raises:
        ExportError: if the destination cannot hold the program, or what was written does not agree with it.
    """
    if destination not in NAMES:
        raise ExportError(f"no destination {destination!r}; {choices(destination, NAMES)}")
    if destination == "free":
        return free_destination.write(program, folder)
    kind: Destination = "per-layer" if destination == "per-layer" else "stock"
    report = folder_writer.write(
        program, folder, destination=kind, limit=limit, shard_bytes=shard_bytes, capture=capture
    )
    return [(str(report.facts["compared"]), float(report.facts["error"]["relative"]))]


def _save(
    job: Job, program: Program, fill: Callable[[Path], list[tuple[str, float]]], peak: Peak | None = None
) -> Result:
    """Fill a folder, add plan and report, and give it its name."""
    plan, held = program.fact(Plan), peak.bytes if peak else 0
    if program.source is not None:
        require_apart(program.source.path, job.output)
    if distributed.rank():
        distributed.barrier()
        return Result(tell(job, program, plan, {}, held), plan, None if job.plan_only else program)
    with new_folder(job.output, job.force) as folder:
        errors = [] if job.plan_only else fill(folder)
        plan.save(folder / PLAN)
        report = replace(tell(job, program, plan, dict(errors), held), sha256=digests(folder))
        report.save(folder)
        note_outcome(folder)
    distributed.barrier()
    return Result(report, plan, None if job.plan_only else program)
