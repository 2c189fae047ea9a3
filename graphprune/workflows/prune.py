"""Run of `graphprune.prune`: load, prune, verify, save, report."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from graphprune.axes.groups import Dependencies
from graphprune.errors import PlanError, WorkspaceError
from graphprune.evaluation.perplexity import PerplexityTest
from graphprune.exporters.model_folders.folder_files import require_apart
from graphprune.frontends.loading import load
from graphprune.ir.program import Program
from graphprune.passes.allocation.allocate import Allocate
from graphprune.passes.analysis.analyze import Analyze
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.passes.calibration.gradients import Gradients
from graphprune.passes.depth.drop_blocks import drop
from graphprune.passes.reconstructions.refit import Refit
from graphprune.passes.rewriting.rewrite import Rewrite
from graphprune.passes.verification.verify import Verify
from graphprune.pipeline import NONE, Pass, Pipeline
from graphprune.planning.destination import NAMES
from graphprune.planning.plan import FILE as PLAN
from graphprune.planning.plan import Plan, labels
from graphprune.reports.report import Quality, Report, digests
from graphprune.statistics.calibration_windows import characters
from graphprune.support import distributed
from graphprune.support.atomic_output import check_output, new_folder, remove_unfinished
from graphprune.support.memory import Peak, return_freed_memory, watch_peak
from graphprune.support.resume import note_outcome, remove_leftovers, resumable
from graphprune.support.workspace import MEMORY_BYTES
from graphprune.workflows import memory_estimate
from graphprune.workflows.goals.goal_data import split_text, with_goal_data
from graphprune.workflows.goals.goal_files import fill_goals
from graphprune.workflows.goals.goal_outcome import Reached
from graphprune.workflows.goals.goal_run import GoalPipeline
from graphprune.workflows.hub.hub_commit import path_of, pinned, tokenizer_of
from graphprune.workflows.in_memory import prune_in_memory, require_no_module_options
from graphprune.workflows.option_fields import takes
from graphprune.workflows.options import AMOUNTS, PruneOptions
from graphprune.workflows.recipes.recipe import pipeline, plan_pipeline, require_data
from graphprune.workflows.result import Result
from graphprune.workflows.runs import run_file
from graphprune.workflows.runs.run_record import Job, build_report, command, identity, name_of, reproduction
from graphprune.workflows.runs.user_run import UserRun, with_objects
from graphprune.workflows.saved_folder import write
from graphprune.workflows.target_needs import TargetNeeds
from graphprune.workflows.trimming.trim_first import trimmed_first, with_remaining

log = logging.getLogger("graphprune.run")
SHARE = 4  # a saved model is reloaded whole, in float32 next to the graph, if it fits in this fraction of the memory


@takes(PruneOptions)
def prune(options: PruneOptions) -> Result:
    """Prune a module in memory, or a model in files, which is saved, verified, with a report and a ``run.yaml``.

    A module is pruned in place: the whole of it, or, where it cannot be captured, its largest parts that can be. Give
    its data, from which the way to call it is inferred, or example inputs. The result holds the module, the report, and
    the plan and graph; `output` or `Result.save` save them. On an error the module is as it was.

    For a model in files, give an `output`; the file ``run.yaml`` in it repeats the run. The output appears once
    everything in it is verified. A `target`, the runtime of a later export, sets `destination` and `align` where they
    are omitted. In both cases give a `sparsity` or another amount to remove (see
    below), or a `goal`, which the run finds the amount for.

    Activations of the calibration samples and finished steps are stored in a folder next to the output, or in
    `scratch`; a killed run continues when it is repeated, unless `restart` is set. Under ``torchrun``, every process
    runs a share of the calibration, and the first one saves.

    Raises:
        GraphpruneError: a subclass of it, for any input that cannot be pruned as requested.
    """
    _require_share(options)
    if not isinstance(options.model, str):
        return prune_in_memory(options)
    require_no_module_options(options)
    _output(options)
    objects = with_objects(options)
    needs = TargetNeeds.of(options.target, options.destination, options.align)
    Calibrate(device=options.device).check()
    limit = memory_limit(options)
    remove_leftovers(_workspace(options), _output(options))
    check_output(_output(options), options.force)
    require_data(_passes(options).passes, options)
    options = pinned(options, options.model)
    program = needs.accepted(with_tokenizer(trimmed_first(options), tokenizer_of(options)))
    if options.destination is None and options.target is None and not _is_of_transformers(program):
        needs = replace(needs, destination="free")
    job = Job(options, reproduction("prune", options), needs)
    exam = PerplexityTest.of(program, options.evaluate, options.length, options.windows)
    if options.plan_only and exam.windows:
        raise PlanError("a plan without a model cannot be evaluated; omit --plan-only or --evaluate")
    resolved = replace(options, destination=needs.destination, align=needs.align_of(program))
    resolved = with_remaining(resolved, program)
    if options.memory:
        job = replace(job, footprint=_footprint(program, resolved, limit))
    run = UserRun.of(with_goal_data(objects, program) if options.searches else objects, program)
    passes = _passes(resolved, job.footprint, run, program)
    return _run(job, program, passes, _Measured(exam, run), limit)


def with_tokenizer(program: Program, folder: Any) -> Program:
    """Program whose texts are read by the tokenizer of a folder, if one is given."""
    if folder is None or program.source is None:
        return program
    return replace(program, source=replace(program.source, tokenizer=Path(folder)))


def _require_share(options: PruneOptions) -> None:
    """Require an amount to remove, in the way of a missing argument; a pipeline may set one itself.

    Raises:
        TypeError: if there is none.
    """
    if not options.has_amount():
        *names, last = map(repr, AMOUNTS)
        raise TypeError(f"prune(): missing a required argument: {', '.join(names)} or {last}")


@dataclass(frozen=True)
class _Measured:
    """Perplexities and the user's metric of a program."""

    exam: PerplexityTest
    run: UserRun

    def of(self, program: Program) -> tuple[Mapping[str, float], float | None]:
        """Measure a program."""
        metric = self.run.measured(program.module()) if self.run.options.metric else None
        return self.exam.perplexities(program), metric

    def noted(self, job: Job, before: Any, after: Any) -> Job:
        """Job with what was measured before and after."""
        quality = tuple(_quality(self.exam, text, before[0], after[0]) for text in after[0])
        return replace(job, quality=quality, metrics=self.run.metrics(before[1], after[1]))


def _is_of_transformers(program: Program) -> bool:
    """Whether a model is one of transformers, or holds one, so that a folder can hold it."""
    kinds = ("python", "pt2", "onnx")
    return program.traced is not None or program.source is None or program.source.kind not in kinds


def _output(options: PruneOptions) -> Path:
    """Output of a run on a model in files, in the way of a missing argument if there is none."""
    if options.output is None:
        raise TypeError("prune(): missing a required argument: 'output'")
    return Path(options.output)


def memory_limit(options: PruneOptions) -> int:
    """Memory that a run may take, in bytes."""
    return memory_estimate.parse(options.memory) if options.memory else psutil.virtual_memory().available


def _workspace(options: PruneOptions) -> Path:
    """Folder for the files of an unfinished run."""
    output = _output(options)
    return Path(options.scratch) / f"{output.name}.run" if options.scratch else output.parent / f".{output.name}.run"


def _passes(
    options: PruneOptions,
    footprint: memory_estimate.Footprint | None = None,
    run: UserRun | None = None,
    program: Program | None = None,
) -> Pipeline | GoalPipeline:
    """Pipeline of a run, up to the plan if only that is requested; with the user's data of a `run`, if there is any."""
    tokens, more = footprint.tokens if footprint else None, run.for_passes if run else NONE
    bounded = footprint is not None
    if options.searches:
        windows, batches = split_text(program, options, tokens) if program else (None, ())
        values = {**more, **({"batches": batches} if batches else {}), "tokens": tokens, "by_segment": bounded}
        return GoalPipeline(options, pipeline, run, windows, values)
    build = plan_pipeline if options.plan_only else pipeline
    return build(options, tokens=tokens, by_segment=bounded, **more)


def _run(job: Job, program: Program, passes: Pipeline | GoalPipeline, measured: _Measured, limit: int) -> Result:
    """Evaluate, prune, evaluate again, save."""
    options, estimate = job.options, job.footprint
    spill, hold = (estimate.spill, 0) if estimate else (None, MEMORY_BYTES)
    with distributed.joined(options.device), watch_peak() as peak:
        inputs = {**identity(options), "processes": distributed.world_size(), "batches": measured.run.identity}
        with resumable(_workspace(options), inputs, options.restart, spill, hold):
            distributed.barrier()  # all processes have checked that the output is free
            if distributed.rank() == 0:
                remove_unfinished(_output(options))
            before = measured.of(program)
            program = passes(program)
            if not options.plan_only:
                job = measured.noted(job, before, measured.of(program))
            fill = partial(write, program, destination=job.destination, limit=limit // SHARE)
            return _save(job, program, fill, peak)


def _quality(exam: PerplexityTest, text: str, before: Mapping[str, float], after: Mapping[str, float]) -> Quality:
    values = (measured[text] if math.isfinite(measured[text]) else None for measured in (before, after))
    return Quality(text, *exam.windows[text].shape, *values)


def _footprint(program: Program, options: PruneOptions, limit: int) -> memory_estimate.Footprint:
    """Estimate of memory with which the run stays below its limit.

    Raises:
        WorkspaceError: if it cannot stay below.
    """
    passes = _passes(options).passes
    if unbounded := [_method(step) for step in passes if not step.memory_bounded]:
        raise WorkspaceError(
            f"recipe {options.recipe} runs the whole model at once in {', '.join(unbounded)}, so that --memory cannot "
            "be guaranteed; choose a memory-bounded recipe, such as fasp, or best for a destination other than free; "
            "or omit --memory"
        )
    return_freed_memory()
    texts = [step.text for step in passes if isinstance(step, Calibrate)]
    length = options.length if texts else 1
    refits = [step for step in passes if isinstance(step, Refit)]
    mixed = any(step.statistics == "mixed" for step in refits)
    differentiates = any(isinstance(step, Gradients) for step in passes)
    text = sum(map(characters, texts))
    estimate = memory_estimate.within(passes[0](program), length, limit, bool(refits), mixed, differentiates, text)
    log.info("memory: %s", estimate)
    return estimate


def _method(step: Pass) -> str:
    """Name of a pass for messages, with its method if it has one."""
    return f"{step.name}{{by={step.by}}}" if isinstance(step, Allocate) else step.name


def apply_plan(
    model: str | Path,
    plan: str | Path,
    *,
    output: str | Path,
    force: bool = False,
    revision: str | None = None,
    offline: bool = False,
) -> Result:
    """Prune a model by a saved plan (a file or the folder of a run), and save it as `prune` does.

    Raises:
        GraphpruneError: a subclass of it, if the plan does not fit the model or a file cannot be read or written.
    """
    cuts = Plan.load(plan)
    cuts.require_cuts()
    check_output(output, force)
    destination = str(cuts.made_by.get("destination", "free"))
    options = PruneOptions(
        model, output=output, recipe=f"plan {plan}", destination=destination, force=force, revision=revision,
        offline=offline,
    )  # fmt: skip
    options = pinned(options, options.model)
    job = Job(options, command())
    whole = load(path_of(options, model))
    program = (drop(whole, cuts.blocks) if cuts.blocks else whole).with_facts(cuts)
    if cuts.groups or not cuts.blocks:
        start = Analyze(destination if destination in NAMES else "free")(program)
        start = start.with_facts(replace(cuts, labels=labels(start.fact(Dependencies), cuts.groups)))
        program = Pipeline((Rewrite(), Verify()), given=(Plan, Dependencies))(start)
    return _save(job, program, lambda folder: write(program, folder, destination))


def _save(
    job: Job, program: Program, fill: Callable[[Path], list[tuple[str, float]]], peak: Peak | None = None
) -> Result:
    """Fill a folder, add plan and report, and give it its name."""
    options, plan, held = job.options, program.fact(Plan), peak.bytes if peak else 0
    if program.source is not None:
        require_apart(program.source.path, _output(options))
    small = None if options.plan_only else program
    if distributed.rank():
        distributed.barrier()
        return _result(build_report(job, program, plan, {}, held), plan, small)
    with new_folder(_output(options), options.force) as folder:
        errors = [] if options.plan_only else fill(folder)
        if (reached := program.facts.get(Reached)) is not None:
            fill_goals(reached, folder, job.destination, Path(name_of(options.model)).name)
        plan.save(folder / PLAN)
        if job.needs is not None:
            (folder / run_file.FILE).write_text(run_file.text(options), encoding="utf-8")
        report = replace(build_report(job, program, plan, dict(errors), held), sha256=digests(folder))
        report.save(folder)
        note_outcome(folder)
    distributed.barrier()
    return _result(report, plan, small)


def _result(report: Report, plan: Plan, small: Program | None) -> Result:
    return Result(report, {"": plan}, {} if small is None else {"": small})
