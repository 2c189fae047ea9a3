"""Export programs and models as .pt2 files, which `torch.export.load` reads."""

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils import _pytree as pytree

from graphprune.errors import ExportError, because
from graphprune.execution.equivalence import run
from graphprune.exporters.checks import parity
from graphprune.exporters.checks.agreement import TOLERANCE, compare_closely, numbers
from graphprune.exporters.contract import NO_OPTIONS, ExportOptions, ExportReport, ExportTarget, Needs
from graphprune.exporters.export_folders.onnx_writer import subject_of
from graphprune.exporters.model_folders.folder_files import require_apart
from graphprune.exporters.onnx_tools.program_subjects import saved_subject
from graphprune.exporters.subjects.subject import Subject
from graphprune.huggingface import model_folder
from graphprune.ir.program import Program
from graphprune.support.atomic_output import new_file

_LOADS_WITH = ["graphprune.load(file)", "torch.export.load(file).module()"]


def export(source: Path, output: Path, options: ExportOptions = NO_OPTIONS, *, force: bool = False) -> ExportReport:
    """Export the model of a Hugging Face folder as one file; a decoder with its cache as inputs and outputs.

    Raises:
        ExportError: if it cannot be exported, the file does not agree with the model, or `output` may not be written.
    """
    options.require("pt2")
    _require_suffix(output)
    require_apart(source, output)
    with new_file(output, force) as file:
        subject = saved_subject(source) if model_folder.holds_graph(source) else subject_of(source, options)
        exported = captured(subject.module, subject.args, {}, subject.free())
        _store(exported, file)
        checked = parity.check(subject, _Reloaded(subject, torch.export.load(file).module()), TOLERANCE)
    facts = {"source": str(source.resolve()), "parity": {"torch.export": checked.to_dict()}, "loads_with": _LOADS_WITH}
    return ExportReport("pt2", output, [output.name], facts)


def save(program: Program, output: Path, *, force: bool = False) -> ExportReport:
    """Save a program as one file with its dynamic dimensions; the file appears once it is reloaded and agrees.

    Raises:
        ExportError: if it cannot be exported, the reloaded file differs, or `output` may not be written.
    """
    _require_suffix(output)
    with new_file(output, force) as file:
        report = write(program, file)
    return replace(report, output=output, files=[output.name])


def write(program: Program, file: Path) -> ExportReport:
    """Write the file and check it, for callers that add files before a folder gets its name.

    Raises:
        ExportError: as `save`.
    """
    start = time.perf_counter()
    (args, kwargs), module = program.inputs, program.module()
    _store(captured(module, args, kwargs, _free(program)), file)
    written = time.perf_counter()
    with torch.no_grad():
        again = torch.export.load(file).module()
        reloaded, expected = numbers(run(again, args, kwargs)), numbers(run(module, args, kwargs))
        worst = compare_closely(
            "the reloaded .pt2 file", reloaded, expected, lambda: numbers(run(again, args, kwargs))[: len(expected)]
        )
    facts = {
        "error": {"absolute": worst.absolute, "relative": worst.relative},
        "seconds": {"write": written - start, "verify": time.perf_counter() - written},
        "loads_with": _LOADS_WITH,
    }
    return ExportReport("pt2", file, [file.name], facts)


@dataclass(frozen=True)
class _Reloaded:
    """Reloaded file, called with the names of its source module."""

    subject: Subject
    module: nn.Module

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return replace(self.subject, module=self.module).run(feeds)


def _require_suffix(output: Path) -> None:
    if output.suffix != ".pt2":
        raise ExportError(f"{output} does not end in .pt2, which marks such files; name it {output.name}.pt2")


def captured(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], free: Any) -> ExportedProgram:
    """Capture a module with torch.export; `free` has its dynamic dimensions.

    Raises:
        ExportError: if it cannot be captured.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(module, args, dict(kwargs), dynamic_shapes=free, strict=False)
    except Exception as fault:  # torch.export raises anything
        raise ExportError(f"torch.export cannot capture {type(module).__name__}{because(fault)}") from fault


class _DeferredError(FileIO):
    """File that reports a failed write at the end: the writer of torch would end the process without a message."""

    fault: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        try:
            while self.fault is None and len(rest):
                rest = rest[super().write(rest) :]
        except OSError as fault:
            self.fault = fault
        return len(data)


def _store(exported: ExportedProgram, file: Path) -> None:
    _drop_unreadable_origins(exported)
    try:
        with warnings.catch_warnings(), _DeferredError(file, "wb") as stream:
            warnings.simplefilter("ignore")
            torch.export.save(exported, stream)  # any file will do
            if stream.fault is not None:
                raise stream.fault
    except OSError:
        raise
    except Exception as fault:  # serializers raise anything
        raise ExportError(f"torch.export cannot save the program{because(fault)}") from fault


def _drop_unreadable_origins(exported: ExportedProgram) -> None:
    """Drop the modules of origin of nodes where their names have the separators with which torch writes them."""
    for node in exported.graph.nodes:
        origins = node.meta.get("nn_module_stack", {})
        if any(set(",;]") & set(f"{key}{path}") for key, (path, *_) in origins.items()):
            del node.meta["nn_module_stack"]


def _free(program: Program) -> Any:
    """Dynamic dimensions in the structure of the inputs: those whose sizes are symbols in the graph."""
    args, kwargs = program.inputs
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    pairs = zip(leaves, nodes, strict=True)
    sizes = [node.meta["val"].shape if isinstance(leaf, Tensor) else () for leaf, node in pairs]
    free = [{dim: Dim.AUTO for dim, size in enumerate(shape) if not is_concrete_int(size)} or None for shape in sizes]
    positional, named = pytree.tree_unflatten(free, spec)
    return (*positional, *named.values()) if positional else named


TARGET = ExportTarget(
    export,
    Needs(
        ("per-layer", "stock", "free"),
        8,
        8,
        "torch.export holds any width; kernels need multiples of 8 to be fast",
        graphs=True,
    ),
)
