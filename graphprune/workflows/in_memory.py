"""Run of `graphprune.prune` on a module or program in memory."""

import copy
import inspect
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from graphprune.errors import OptionError, TraceError, because
from graphprune.execution.module_state import restored_on_failure
from graphprune.execution.wrappers import require_module, unwrapped
from graphprune.ir.program import Program
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.planning.plan import Plan
from graphprune.reports.report import CalibrationReport, Report
from graphprune.support.atomic_output import check_output
from graphprune.support.memory import Peak, watch_peak
from graphprune.workflows.goals.goal_data import with_goal_data
from graphprune.workflows.goals.goal_run import GoalPipeline
from graphprune.workflows.module_parts import PrunedParts, count, prune_parts
from graphprune.workflows.option_fields import described
from graphprune.workflows.options import PruneOptions
from graphprune.workflows.part_data import data_of_part
from graphprune.workflows.recipes.auto_recipe import AUTO, NO_DATA
from graphprune.workflows.recipes.recipe import pipeline, require_data
from graphprune.workflows.result import Result
from graphprune.workflows.runs.run_record import Job, build_report, reproduction
from graphprune.workflows.runs.user_run import UserRun, with_objects
from graphprune.workflows.target_needs import GRAPH, TargetNeeds

log = logging.getLogger("graphprune.run")

#: Options for models in files.
OF_FILES = (
    "calibration", "samples", "length", "evaluate", "windows", "plan_only", "memory", "scratch", "restart", "text",
    "labelled", "quant",
    "trim", "trim_tokens", "trim_coverage", "revision", "offline",
)  # fmt: skip
OF_MODULES = ("args", "kwargs", "inplace", "optimizer", "average")
Seconds = dict[str, float]


def prune_in_memory(options: PruneOptions) -> Result:
    """Prune a module or a program, and save it if there is an output.

    Raises:
        GraphpruneError: a subclass of it, for anything that cannot be pruned as requested; the module is unchanged.
    """
    _refuse(options, OF_FILES, "a model in files")
    Calibrate(device=options.device).check()
    if options.output is not None:
        check_output(options.output, options.force)
    options = with_objects(options)
    if isinstance(options.model, Program):
        return _saved(_pruned_program(options), options)
    with restored_on_failure(options.model, options.optimizer, options.average):
        return _saved(_pruned_module(options), options)


def _saved(result: Result, options: PruneOptions) -> Result:
    """Result, saved if there is an output."""
    if options.output is not None:
        result.save(options.output, force=options.force)
    return result


def require_no_module_options(options: PruneOptions) -> None:
    """Refuse options that are for modules in memory.

    Raises:
        OptionError: if there is one.
    """
    _refuse(options, OF_MODULES, "a module in memory")


def _refuse(options: PruneOptions, names: Sequence[str], what: str) -> None:
    known = described(type(options))
    for name in names:
        if getattr(options, name) is not known[name].default and getattr(options, name) != known[name].default:
            raise OptionError(f"{name} is an option for {what}; omit it")


def _pruned_program(options: PruneOptions) -> Result:
    _refuse(options, OF_MODULES, "a module")
    program: Any = options.model
    options = with_goal_data(options, program) if options.searches else options
    run, seconds = UserRun.of(options, program), Seconds()
    job = _job(options, program)
    with watch_peak() as peak:
        before = run.measured(program.module()) if options.metric else None
        small = _cut(job, run.for_passes, program, run)
        after = run.measured(small.module()) if options.metric else None
    report = _with_data(build_report(job, small, small.fact(Plan), {}, peak.bytes), run, before, after)
    return Result(_noted(report, options, seconds), {"": small.fact(Plan)}, {"": small})


def _pruned_module(options: PruneOptions) -> Result:
    given = require_module(options.model)
    if not options.inplace and (options.optimizer or options.average is not None):
        raise OptionError("an optimizer and an averaged copy follow the module itself; omit inplace=False")
    outer: Any = options.model if options.inplace else copy.deepcopy(options.model)
    module = unwrapped(outer)
    options = with_goal_data(options, module) if options.searches else options
    run, seconds = UserRun.of(options, module), Seconds()
    companions = {"optimizer": options.optimizer, "average": options.average}
    size = count(given)
    _require_inputs(module, run)
    with watch_peak() as peak:
        with _timed(seconds, "metric"):
            before = run.measured(module)
        cutter = _Cutter(module, options, run)
        parts = prune_parts(module, run.inputs, cutter, {k: v for k, v in companions.items() if v})
        with _timed(seconds, "metric"):
            after = run.measured(module)
    report = _with_data(_merged(_reports(cutter, parts, peak), size, count(module)), run, before, after)
    report = _noted(report, options, seconds, [*_part_notes(parts), *cutter.notes])
    plans = {path: program.fact(Plan) for path, program in parts.programs.items()}
    return Result(report, plans, parts.programs, outer, parts.written_back, parts.untouched)


@dataclass
class _Cutter:
    """Cuts the programs of a module and of its parts; the job of each is kept for its report."""

    module: nn.Module
    options: PruneOptions
    run: UserRun
    jobs: dict[str, Job] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __call__(self, path: str, program: Program) -> Program:
        """Plan, cut and verify the program of the part at a path."""
        options, values = self.options, self.run.for_passes
        if path and options.searches:
            raise OptionError(
                f"goals are about a whole module, and of {type(self.module).__name__} only parts such as {path} can be "
                "captured; give an amount to remove, such as sparsity=0.2"
            )
        if path and values:
            values = data_of_part(self.module, self.module.get_submodule(path), program, self.run)
            if not values:
                self.notes.append(f"{path} is pruned without data: no batch has the sizes that it was captured with")
                options = without_data(options)
        self.jobs[path] = _job(options, program)
        return _cut(self.jobs[path], values, program, self.run)


def without_data(options: PruneOptions) -> PruneOptions:
    """Options for a part that the data does not fit."""
    return replace(options, data=None, test=None, loss=None, metric=None, forward=None)


def _job(options: PruneOptions, program: Program) -> Job:
    """Record of a run on a program; its destination is stock for a model of transformers, and else free."""
    whole = program.traced is not None and not program.traced.prefix
    requested = options.destination or (None if options.target else "stock" if whole else "free")
    needs = TargetNeeds.of(options.target, requested, options.align, GRAPH)
    program = needs.accepted(program)
    resolved = replace(options, destination=needs.destination, align=needs.align_of(program))
    if isinstance(options.model, nn.Module):
        resolved = replace(resolved, follow=True)  # the budget is spent on what the module can have narrower
    return Job(resolved, reproduction("prune", options), needs)


def _cut(job: Job, values: Mapping[str, Any], program: Program, run: UserRun) -> Program:
    known = {name: value for name, value in values.items() if value is not None}
    searches = job.options.searches
    passes = GoalPipeline(job.options, pipeline, run, None, known) if searches else pipeline(job.options, **known)
    require_data(passes.passes, job.options)
    return passes(program)


def _require_inputs(module: nn.Module, run: UserRun) -> None:
    """Require example inputs or data, of a module that takes inputs.

    Raises:
        TraceError: if there are none.
    """
    options = run.options
    if run.data is None and not options.args and not options.kwargs and "forward" in dir(module):
        try:
            inspect.signature(module.forward).bind()
        except TypeError as fault:
            raise TraceError(
                f"prune() has no inputs of {type(module).__name__}{because(fault)}; pass data, batches such as a "
                "DataLoader, or example inputs: args=(x,)"
            ) from fault


@contextmanager
def _timed(seconds: Seconds, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def _reports(cutter: _Cutter, parts: PrunedParts, peak: Peak) -> dict[str, Report]:
    return {
        path: build_report(cutter.jobs[path], program, program.fact(Plan), {}, peak.bytes)
        for path, program in parts.programs.items()
    }


def _merged(reports: Mapping[str, Report], before: int, after: int) -> Report:
    """Report of a module from those of its parts; `before` and `after` count all its parameters."""
    first = next(iter(reports.values()))
    if "" in reports:
        return first

    def all_of(name: str) -> dict[str, Any]:
        return {f"{path}.{key}": value for path, one in reports.items() for key, value in getattr(one, name).items()}

    seconds: Seconds = {}
    for one in reports.values():
        seconds |= {name: seconds.get(name, 0.0) + value for name, value in one.seconds.items()}
    notes = tuple(f"{path}: {note}" for path, one in reports.items() for note in one.notes)
    return replace(
        first,
        parameters_before=before,
        parameters_after=after,
        plan=", ".join(one.plan for one in reports.values()),
        program=", ".join(one.program for one in reports.values()),
        seconds=seconds,
        notes=(f"pruned in parts, each by the requested share: {', '.join(reports)}", *notes),
        amounts=None,
        budget="parameters",
        widths=all_of("widths"),
        labels=all_of("labels"),
        counts=all_of("counts"),
        scores=all_of("scores"),
        errors=all_of("errors"),
    )


def _with_data(report: Report, run: UserRun, before: float | None, after: float | None) -> Report:
    known = report.calibration
    data = (
        CalibrationReport(run.source, len(run.calls), 0, known.sha256, known.autocast) if run.data and known else known
    )
    return replace(report, calibration=data, metrics=run.metrics(before, after))


def _part_notes(parts: PrunedParts) -> Iterator[str]:
    """What was written back to each part, and why others are as they were."""
    for path, written in parts.written_back.items():
        yield from (f"{path}: {line}" if path else line for line in str(written).splitlines())
    yield from (f"{path or 'the whole module'} is as it was: {why}" for path, why in parts.untouched.items())


def _noted(report: Report, options: PruneOptions, seconds: Seconds, notes: Sequence[str] = ()) -> Report:
    if options.recipe == AUTO and options.data is None:
        log.warning("%s", NO_DATA)
        notes = [*notes, NO_DATA]
    times = {name: round(value, 3) for name, value in seconds.items() if value >= 5e-4}
    return replace(report, seconds={**report.seconds, **times}, notes=(*report.notes, *notes))
