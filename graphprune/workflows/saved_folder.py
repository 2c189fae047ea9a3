"""Content of a folder for each destination, and pruned modules that are saved in one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from graphprune.errors import ExportError, GraphpruneError, LoadError, because, choices, require_path
from graphprune.execution.equivalence import run
from graphprune.execution.module_state import evaluation_mode, preserved_state, restored_on_failure
from graphprune.execution.rounding_check import compare_closely
from graphprune.exporters.checks.reloading import Destination
from graphprune.exporters.contract import FolderVerification
from graphprune.exporters.export_folders.folder_check import verify_folder as verify_saved
from graphprune.exporters.model_folders import folder_writer
from graphprune.exporters.targets import pt2
from graphprune.frontends import pt2_programs
from graphprune.frontends.huggingface import load as capture
from graphprune.frontends.modules import trace
from graphprune.huggingface import model_folder
from graphprune.ir.program import Dropped, Program, require_program
from graphprune.ir.weight_files import MAX_SHARD_BYTES
from graphprune.passes.depth.drop_blocks import drop
from graphprune.passes.rewriting.rewrite import rewrite
from graphprune.planning.destination import NAMES
from graphprune.planning.plan import FILE as PLAN
from graphprune.planning.plan import Plan, require_plan
from graphprune.support import json_fields
from graphprune.version import __version__
from graphprune.workflows import free_destination

M = TypeVar("M", bound=nn.Module)
MODULE = "module.json"  # the class of a saved module, and the paths of its pruned parts
STATE = "module.safetensors"


def write(
    program: Program, folder: Path, destination: str, *, limit: int | None = None, shard_bytes: int = MAX_SHARD_BYTES
) -> list[tuple[str, float]]:
    """Fill a folder for a destination; return each comparison that was made, with its relative error.

    Weights go to files of at most `shard_bytes`, one in memory at a time, and a model of more than `limit` bytes in
    float32 is checked in parts. Destination free does not observe the limit: its graph is saved with all weights in
    memory, at least twice.

    Raises:
        ExportError: if the destination cannot hold the program, or the files do not agree with it.
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


def apply(program: Program, plan: Plan) -> Program:
    """Return a new, narrower program; the original is unchanged.

    Raises:
        PlanError: if the plan is for another model, or needs factors or rotations, which plans do not hold.
    """
    require_program(program)
    require_plan(plan).require_cuts()
    if plan.blocks and Dropped not in program.facts:
        program = drop(program, plan.blocks)
    return rewrite(program, plan).with_facts(plan) if plan.groups or not plan.blocks else program


def verify_folder(folder: str | Path) -> FolderVerification:
    """Repeat the checks of a folder that `prune`, `save` or `export` wrote.

    Raises:
        VerificationError: if something in it is missing, damaged, or no longer agrees.
    """
    require_path("folder", folder, "graphprune.save writes a program into one")
    checks = free_destination.check_folder if model_folder.holds_graph(Path(folder)) else verify_saved
    return checks(Path(folder))


def write_module(
    module: nn.Module, programs: Mapping[str, Program], plans: Mapping[str, Plan], folder: Path
) -> dict[str, float]:
    """Add a pruned module to a folder, in which the program of the whole may lie already; return what was compared.

    Its state goes to a safetensors file, and each pruned part to a plan and a .pt2 file.

    Raises:
        ExportError: if a file cannot be written, or does not agree with the program.
    """
    errors = {}
    for number, (path, program) in enumerate(programs.items()):
        file, plan = _files(folder, number, path)
        file.parent.mkdir(exist_ok=True)
        plans[path].save(plan)
        if not file.exists():
            report = pt2.write(program, file)
            errors[f"reloaded {file.name} and rewritten graph of {path or 'the module'}"] = float(
                report.facts["error"]["relative"]
            )
    try:
        save_model(module, str(folder / STATE))
    except (ValueError, RuntimeError, SafetensorError) as fault:  # of state that is no plain tensor
        raise ExportError(f"the state of {type(module).__name__} cannot be saved{because(fault)}") from fault
    kind = type(module)
    table = {"class": f"{kind.__module__}.{kind.__qualname__}", "parts": list(programs), "version": __version__}
    (folder / MODULE).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return errors


def load_into(folder: Path, module: M) -> M:
    """Narrow a module of the class that was pruned, and load the saved state into it; return the module.

    Each pruned part is captured, cut by the saved plan, and written back, as in the run that saved the folder.

    Raises:
        LoadError: if the folder holds no pruned module, or one of another class; the module is unchanged then.
    """
    paths, name = _read(folder)
    try:
        with restored_on_failure(module):
            for number, path in enumerate(paths):
                _narrow(module.get_submodule(path), *_files(folder, number, path))
            _load_state(module, folder / STATE)
            for number, path in enumerate(paths):
                _check(module.get_submodule(path), _files(folder, number, path)[0])
    except (GraphpruneError, AttributeError, RuntimeError, SafetensorError, OSError) as fault:
        raise LoadError(
            f"{folder} does not fit {type(module).__name__}{because(fault)}; expected a new {name}, built with the "
            "same arguments as before the cut"
        ) from fault
    return module


def _files(folder: Path, number: int, path: str) -> tuple[Path, Path]:
    """Files of a part: its program and its plan; those of the whole have the names of destination free."""
    if not path:
        return folder / model_folder.PROGRAM, folder / PLAN
    return folder / "parts" / f"{number}.pt2", folder / "parts" / f"{number}.{PLAN}"


def _read(folder: Path) -> tuple[list[str], str]:
    """Paths of the pruned parts, and the name of the class."""
    path = folder / MODULE
    if not path.is_file() and model_folder.is_folder(folder):
        raise LoadError(f"{folder} is loaded by from_pretrained of transformers, without a module to load it into")
    try:
        entries = json_fields.read(path).members(("class", "parts", "version"))
        return [item.text() for item in entries["parts"].items()], entries["class"].text()
    except (OSError, ValueError) as fault:
        advice = "save the result of graphprune.prune(module, ...) with result.save"
        raise json_fields.refused(path, "describes no pruned module", fault, advice) from fault


def _narrow(part: nn.Module, program: Path, plan: Path) -> None:
    args, kwargs = pt2_programs.load(program).inputs
    apply(trace(part, args, kwargs), Plan.load(plan)).write_back(part)


def _load_state(module: nn.Module, file: Path) -> None:
    with safe_open(file, framework="pt") as stored:
        names = set(stored.keys())
    for name in sorted(names - module.state_dict().keys()):  # biases that a refit added
        owner, _, own = name.rpartition(".")
        layer = module.get_submodule(owner)
        if own in layer._parameters and layer._parameters[own] is None:
            layer._parameters[own] = nn.Parameter(torch.zeros(()))
    load_model(module, str(file))


def _check(part: nn.Module, file: Path) -> None:
    """Compare a part with its saved program on the example inputs."""
    program = pt2_programs.load(file)
    with torch.no_grad(), evaluation_mode(part), preserved_state(part):
        got, expected = (run(each, *program.inputs) for each in (part, program.module()))
        what = "saved program and loaded module"
        compare_closely(expected, got, what, lambda: run(part, *program.inputs))
