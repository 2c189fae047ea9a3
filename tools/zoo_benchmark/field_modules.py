"""Stages that a module of the field family goes through; a stage that fails ends only those that need its result."""

import copy
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import graphprune as gp
from graphprune.errors import GraphpruneError
from tests import zoo
from tests.zoo.field import FieldModel
from tools.zoo_benchmark import noise
from tools.zoo_benchmark.goal import Goal
from tools.zoo_benchmark.judge import SEED, Ambiguous, Inputs, difference, judge, parameters, run
from tools.zoo_benchmark.ours import APPROXIMATE, plan_for
from tools.zoo_benchmark.outcomes import Outcomes, StageError, require

CLOSE = 1e-4  # of the largest value: a model that was reloaded


@dataclass(frozen=True)
class Cut:
    """A program, what was cut from it, and the plan."""

    program: gp.Program
    small: gp.Program
    plan: gp.Plan


def run_module(model: FieldModel, outcomes: Outcomes, goal: Goal) -> None:
    """Take a module through all stages."""
    whole = model.build()
    part = whole.get_submodule(model.part)
    example, fresh = (_call(whole, part, model.inputs(seed)) for seed in (0, SEED))
    cut = _captured_and_cut(part, example, outcomes, goal)
    if cut is None:
        return
    narrow = _written_back(cut, part, outcomes)
    uncalled = copy.deepcopy(whole)  # a call may leave hooks in a module, which cannot be pickled
    _exact(model, cut, part if narrow else cut.small.module(), fresh, outcomes)
    with outcomes.stage("trained"):
        require(narrow, "nothing was written back")
        outcomes.record.remark = f"loss {_trained(model, copy.deepcopy(whole)):.3g}"
    with tempfile.TemporaryDirectory() as folder:
        _saved_and_exported(model, cut, uncalled if narrow else None, fresh, Path(folder), outcomes)


def _call(whole: nn.Module, part: nn.Module, inputs: Inputs) -> Inputs:
    """Inputs that a part gets when the whole is called."""
    if part is whole:
        return inputs
    calls: list[Inputs] = []
    hook = part.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    run(whole, inputs)
    hook.remove()
    return calls[0]


def _captured_and_cut(module: nn.Module, example: Inputs, outcomes: Outcomes, goal: Goal) -> Cut | None:
    """Capture, plan, cut and prove."""
    record, cut = outcomes.record, None
    with outcomes.stage("captured"):
        program = gp.trace(module, *example)
        record.parameters, record.nodes = program.count(), len(program.graph.nodes)
    if "captured" not in record.passed:
        return None
    with outcomes.stage("cut"):
        dependencies = gp.analyze(program)
        record.groups, record.exact_groups = len(dependencies.groups), sum(g.exact for g in dependencies.groups)
        plan, record.mode = plan_for(program, dependencies, goal)
        cut = Cut(program, gp.apply(program, plan), plan)
        record.removed = 1 - cut.small.count() / record.parameters
    return cut


def _written_back(cut: Cut, module: nn.Module, outcomes: Outcomes) -> bool:
    """Narrow the module; padding is a failure that the later stages survive."""
    record = outcomes.record
    with outcomes.stage("written back narrow"):
        result = cut.small.write_back(module)
        record.written_back, record.padded = True, result.unremoved / record.parameters
        require(not result.padded, f"{record.padded:.0%} of the parameters remain: {_reasons(result.padded)}")
    return record.written_back


def _reasons(padded: Any) -> str:
    return "; ".join(f"{kind}: {reason}" for kind, reason in padded.items())


def _exact(model: FieldModel, cut: Cut, pruned: Any, fresh: Inputs, outcomes: Outcomes) -> None:
    """The proof accepts the cut and refuses noise, and the law that all tools are held to agrees."""
    record = outcomes.record
    with outcomes.stage("exact"):
        record.proven = gp.verify(cut.program, cut.small, cut.plan).max_error
        record.noise = noise.judged_by_proof(cut.program, cut.small, cut.plan)
        require(record.noise != noise.PASSED, "the proof accepts noise in the place of weights")
        require(record.mode != APPROXIMATE, "no group is exact")
        original = model.build().get_submodule(model.part)
        own = parameters(original)
        stored = {name: cut.small.name(name) for name in own}
        kept = {name: cut.small.weights[s] if s in cut.small.weights else own[name] for name, s in stored.items()}
        try:
            verdict = judge(original, kept, pruned, fresh)
        except Ambiguous:  # then the proof counts
            return
        record.error = verdict.error
        require(verdict.holds, verdict.reason)
    record.exact = "exact" in record.passed


def _trained(model: FieldModel, module: nn.Module) -> float:
    """Loss of a step of training."""
    module.train()
    inputs = model.inputs(SEED + 1)
    loss = model.fit(module, inputs) if model.fit else _fit(module, inputs)
    require(loss == loss and abs(loss) < float("inf"), f"the loss is {loss}")
    return loss


def _fit(module: nn.Module, inputs: Inputs) -> float:
    """A step on the squares of all outputs."""
    torch.manual_seed(SEED)
    optimizer = torch.optim.AdamW((p for p in module.parameters() if p.requires_grad), 1e-4)
    outputs = zoo.tensors(module(*inputs[0], **inputs[1]))
    loss: Tensor = sum((output.square().mean() for output in outputs), torch.zeros(()))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


def _saved_and_exported(
    model: FieldModel, cut: Cut, whole: nn.Module | None, fresh: Inputs, folder: Path, outcomes: Outcomes
) -> None:
    """The folder of a program and a pickled module agree with what was saved; ONNX by us and by its own exporter."""
    with outcomes.stage("saved and reloaded"), _warnings() as warnings:
        gp.save(cut.small, output=folder / "saved")
        _require_close(run(cut.small.module(), fresh), run(gp.load(folder / "saved").module(), fresh))
        if whole is not None:
            torch.save(whole, folder / "module.pt")
            again = torch.load(folder / "module.pt", weights_only=False)
            inputs = model.inputs(SEED)
            _require_close(run(whole, inputs), run(again, inputs))
    with outcomes.stage("exported"):
        require((folder / "saved").is_dir(), "nothing was saved")
        try:
            gp.export(folder / "saved", target="onnx", output=folder / "onnx")
        except GraphpruneError as fault:
            raise StageError("; ".join(warnings) or str(fault)) from fault
        if model.own_export and whole is not None:
            path = model.own_export(copy.deepcopy(whole), folder)
            require(path.is_file(), "its own exporter wrote nothing")


def _require_close(reference: list[Tensor], got: list[Tensor]) -> None:
    worst = max(difference(a, b) for a, b in zip(reference, got, strict=True))
    require(worst <= CLOSE, f"what was reloaded differs by {worst:.1e}")


class _Collector(logging.Handler):
    """Keeps the messages."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Warnings of graphprune that are logged meanwhile: what a save leaves out has its reason there."""
    handler = _Collector(logging.WARNING)
    logger, disabled = logging.getLogger("graphprune"), logging.root.manager.disable
    logging.disable(logging.NOTSET)
    logger.addHandler(handler)
    try:
        yield handler.messages
    finally:
        logger.removeHandler(handler)
        logging.disable(disabled)
