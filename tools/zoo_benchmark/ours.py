"""Whole chain of graphprune on a model: trace, analyze, plan, cut, verify, write back."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import WriteBackError, reason_of
from tools.zoo_benchmark import noise
from tools.zoo_benchmark.goal import Goal
from tools.zoo_benchmark.judge import Ambiguous, Call, judge, parameters
from tools.zoo_benchmark.record import LEAST, Report
from tools.zoo_benchmark.subject import Subject

NAME = "graphprune"
BUDGET = "graphprune, by budget"  # of parameters, where the other run takes the same share of every group
RESCALED = "no group is exact as it is; averages were rescaled, and the law is graphprune's own"
APPROXIMATE = "no group is exact; shapes and finite numbers were checked"


def run(subject: Subject, report: Report, goal: Goal) -> None:
    """Take the model through every stage; what happens is in the record.

    Where no group can be cut exactly, others are; graphprune then proves what it claims, and no more.
    """
    record = report.record
    with report.stage("build"):
        model = subject.build()
    with report.stage("trace"):
        program = gp.trace(model, *subject.example)
        record.parameters, record.nodes = program.count(), len(program.graph.nodes)
    with report.stage("analyze"):
        dependencies = gp.analyze(program)
        record.groups, record.exact_groups = len(dependencies.groups), sum(group.exact for group in dependencies.groups)
        record.opaque, record.free = dict(dependencies.opaque), _free(program, dependencies)
    with report.stage("plan"):
        plan, record.mode = plan_for(program, dependencies, goal)
    with report.stage("apply"):
        small = gp.apply(program, plan)
        record.removed = 1 - small.count() / record.parameters
    with report.stage("verify"):
        record.proven = gp.verify(program, small, plan).max_error
    with report.stage("noise"):
        record.noise = noise.judged_by_proof(program, small, plan)
    with report.stage("write back"):
        pruned, kept = _written_back(report, small, model)
    if record.mode:  # there is no such law for what norms changed
        record.exact = record.mode == RESCALED and record.removed >= LEAST
        return
    with report.stage("judge"):
        _judge(subject, report, pruned, kept)


def cuttable(dependencies: gp.Dependencies) -> tuple[Sequence[gp.Group], str]:
    """Groups to cut: exact ones if there are any, or else the next kind. The text names a kind that the judge cannot
    compare with zeroing."""
    if exact := [group for group in dependencies.groups if group.exact]:
        return exact, ""
    if maskable := [group for group in dependencies.groups if group.maskable]:
        return maskable, RESCALED
    return dependencies.groups, APPROXIMATE


def plan_for(program: gp.Program, dependencies: gp.Dependencies, goal: Goal) -> tuple[gp.Plan, str]:
    """Plan by magnitude that cuts what is `cuttable`, with the kind that the judge cannot compare with zeroing."""
    cut, mode = cuttable(dependencies)
    others = tuple(group.name for group in dependencies.groups if group not in cut)
    share: Any = {"ratio": goal.ratio, "sparsity": goal.sparsity}
    return gp.plan(program, **share, recipe="magnitude", exact_only=not mode, protect=others), mode


def _free(program: gp.Program, dependencies: gp.Dependencies) -> float:
    """The share of the parameters that lies in tensors in which an exact group stands."""
    shapes = program.shapes()
    names = {place.parameter for group in dependencies.groups if group.exact for place in group.places}
    sizes = {name: Tensor.numel(program.weights[name]) for name in names & program.parameters & shapes.keys()}
    return sum(sizes.values()) / max(1, program.count())


def _written_back(report: Report, small: gp.Program, model: nn.Module) -> tuple[Call, Mapping[str, Tensor]]:
    """The narrowed module, or the rewritten graph where it cannot follow; and the weights of the graph.

    A module may hold zeros, or weights that take a factor for what its forward computes of a size.
    """
    record, own = report.record, parameters(model)  # a parameter that the graph does not use is as it was
    stored = {name: small.name(name) for name in own}
    kept = {name: small.weights[s] if s in small.weights else own[name] for name, s in stored.items()}
    try:
        done = small.write_back(model)
    except WriteBackError as fault:
        record.remark = f"not written back: {reason_of(fault)}"
        return small.module(), kept
    record.written_back, record.padded = True, done.unremoved / record.parameters
    record.remark = " ".join(str(done).split()) if done.padded else ""
    return model, kept


def _judge(subject: Subject, report: Report, pruned: Call, kept: Mapping[str, Tensor]) -> None:
    """The law that all tools are held to; where values cannot tell, graphprune's own proof counts."""
    record = report.record
    enough = record.removed >= LEAST
    try:
        verdict = judge(subject.build(), kept, pruned, subject.fresh)
    except Ambiguous as fault:
        record.remark, record.exact = f"judged by its own proof; {fault}", enough
        return
    record.error, record.exact = verdict.error, verdict.holds and enough
    record.fault = verdict.reason or ("" if enough else f"only {record.removed:.1%} of the parameters removed")
