"""Stages that a folder of the field family goes through: pruned by one call, and read again by its own library."""

import tempfile
from pathlib import Path
from typing import Any

import torch

import graphprune as gp
from graphprune.errors import VerificationError
from tests.zoo.field import FieldFolder
from tools.zoo_benchmark.goal import Goal
from tools.zoo_benchmark.judge import SEED, difference
from tools.zoo_benchmark.outcomes import Outcomes, require
from tools.zoo_benchmark.record import count

DESTINATIONS = ("stock", "per-layer")  # the first that can hold the cut


def run_folder(model: FieldFolder, outcomes: Outcomes, goal: Goal) -> None:
    """Take a folder through all stages."""
    with tempfile.TemporaryDirectory() as root:
        source, output = Path(root) / "original", Path(root) / "pruned"
        model.save(source)
        with outcomes.stage("captured"):
            program = gp.load(source)
            outcomes.record.parameters = program.count()
        with outcomes.stage("cut"):
            result = _pruned(source, output, outcomes, goal)
            outcomes.record.removed = 1 - result.program.count() / outcomes.record.parameters
        if output.is_dir():
            _read_again(model, source, output, outcomes)


def _pruned(source: Path, output: Path, outcomes: Outcomes, goal: Goal) -> Any:
    """Result of the first destination that can hold what the goal takes."""
    faults: list[str] = []
    for destination in DESTINATIONS:
        try:
            result = gp.prune(
                source, ratio=goal.ratio, sparsity=goal.sparsity, recipe="magnitude", align=1, destination=destination,
                output=output,
            )  # fmt: skip
        except gp.GraphpruneError as fault:
            faults.append(f"{destination}: {fault}")
            continue
        outcomes.record.remark = destination
        return result
    require(False, "; ".join(faults))


def _read_again(model: FieldFolder, source: Path, output: Path, outcomes: Outcomes) -> None:
    """The library reads the folder; the model in it is narrow, agrees with the graph, trains and is exported."""
    record = outcomes.record
    with outcomes.stage("exact"):  # prune proved the cut; this repeats the checks of the folder
        try:
            gp.verify_folder(output)
        except VerificationError as fault:
            require(False, str(fault))
    record.exact = "exact" in record.passed
    narrow: Any = None
    with outcomes.stage("written back narrow"):
        narrow = model.load(output)
        share = count(narrow) / count(model.load(source))
        require(share < 1 - record.removed / 2, f"the library reads {share:.0%} of the parameters")
        record.written_back = True
    with outcomes.stage("trained"):
        require(narrow is not None, "the library does not read it")
        _fit(model, narrow)
    with outcomes.stage("saved and reloaded"):
        require(narrow is not None, "the library does not read it")
        _save_again(model, narrow, output.parent / "again")
    with outcomes.stage("exported"):
        gp.export(output, target="onnx", output=output.parent / "onnx")


def _fit(model: FieldFolder, module: Any) -> None:
    """A step on the squares of the outputs."""
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), 1e-4)
    loss = model.run(module, SEED).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    module.eval()


def _save_again(model: FieldFolder, module: Any, folder: Path) -> None:
    """After training the library saves and reads it as any other of its models."""
    module.save_pretrained(str(folder))
    with torch.no_grad():
        worst = difference(model.run(module, SEED), model.run(model.load(folder), SEED))
    require(worst <= 1e-4, f"what the library saved and read again differs by {worst:.1e}")
