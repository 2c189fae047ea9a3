"""Runs of the other tools: each documented way to use one on a fresh model, then the judge that judges ours.

A tool that prunes what a norm normalises cannot equal the masked original, because the zeros count in the norm's
statistics and what is removed does not. So that nobody fails for having been asked too much, each tool also runs in
a way that leaves those dimensions out. The first exact result counts, or else the one that came nearest.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from torch import nn

from graphprune.errors import reason_of
from tools.zoo_benchmark import judge
from tools.zoo_benchmark.record import LEAST, Record, Report, count
from tools.zoo_benchmark.subject import Subject

Prune = Callable[[nn.Module, judge.Inputs, float], None]  # a model in place, with example inputs and a ratio


def run_all(modes: Mapping[str, Prune], subject: Subject, report: Report, ratio: float) -> None:
    """Try mode after mode until one is exact; the record is that of the best."""
    best = report.record
    for mode, prune in modes.items():
        trial = replace(report.record, mode=mode, stage="", fault="", removed=0.0, passed=[], seconds={})
        _try(prune, subject, Report(trial, partial(_send_better, report, replace(best))), ratio)
        best = max(trial, best, key=_rank)
        if best.exact:
            break
    vars(report.record).update(vars(best))


def _rank(record: Record) -> tuple[bool, bool, int, float]:
    """Exact is best, then having cut anything, then having come far, then having cut much."""
    return record.exact, record.removed >= LEAST, len(record.passed), record.removed


def _send_better(report: Report, best: Record, trial: Record) -> None:
    """Send what counts if the time is up now."""
    report.send(max(trial, best, key=_rank))


def _try(prune: Prune, subject: Subject, report: Report, ratio: float) -> None:
    """Let a tool prune a fresh model in one mode, and judge it; whatever it raises is its fault."""
    try:
        _prune_and_judge(prune, subject, report, ratio)
    except Exception as fault:
        report.record.fault = f"{type(fault).__name__}: {reason_of(fault)}"


def _prune_and_judge(prune: Prune, subject: Subject, report: Report, ratio: float) -> None:
    """The stages of one mode."""
    record, original, model = report.record, subject.build(), subject.build()
    record.parameters = count(original)
    expected = [tensor.shape for tensor in judge.run(original, subject.fresh)]
    with report.stage("prune"):
        prune(model, subject.example, ratio)
    record.removed = 1 - count(model) / record.parameters
    with report.stage("run"):
        shapes = [tensor.shape for tensor in judge.run(model, subject.fresh)]
    if shapes != expected:
        record.fault = "the outputs have other shapes"
        return
    record.passed.append("shapes")
    with report.stage("judge"):
        verdict = judge.judge(original, judge.parameters(model), model, subject.fresh)
    enough = record.removed >= LEAST
    record.error, record.exact = verdict.error, verdict.holds and enough
    record.fault = verdict.reason or ("" if enough else f"only {record.removed:.1%} of the parameters removed")


def normalises(layer: nn.Module) -> bool:
    """Does a layer compute statistics over the dimension that its weight has? A batch norm does not."""
    kind = type(layer).__name__.lower()
    return "norm" in kind and "batchnorm" not in kind and "frozen" not in kind
