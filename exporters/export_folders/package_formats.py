"""Shared steps of all targets of other packages: one main file, written by the package, run and checked in it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphprune.execution.module_state import quiet_exporters
from graphprune.exporters.checks.parity import FLOAT32, Runnable
from graphprune.exporters.checks.validation import Reference, compared
from graphprune.exporters.contract import ExportOptions, ExportReport, FolderVerification
from graphprune.exporters.export_folders.export_report import require_size, source_of, versions
from graphprune.exporters.export_folders.onnx_writer import OnnxTarget, finish
from graphprune.exporters.model_folders.folder_files import require_output
from graphprune.exporters.subjects.subject import Subject
from graphprune.support.atomic_output import new_folder
from graphprune.support.packages import load


@dataclass(frozen=True)
class Format:
    """Functions that write the file of a target and run it, in an export and in later checks.

    `reference` returns the model of a folder with the tolerated error; `write` writes `file`, and those that belong to
    it, into a folder and returns facts for the report; `open` opens it for runs with the given input and output names.
    """

    target: str
    file: str
    packages: tuple[str, ...]
    reference: Callable[[Path, ExportOptions], Reference]
    write: Callable[[Subject, Path, ExportOptions], dict[str, Any]]
    open: Callable[[Path, Sequence[str], Sequence[str]], Runnable]


def import_package(module: str, extra: str) -> Any:
    """Import a module of a package that an extra installs, silently.

    Raises:
        PackageError: if the package is missing or broken.
    """
    with quiet_exporters():
        return load(module, extra)


def fixed_size(subject: Subject, options: ExportOptions) -> Reference:
    """The reference of a model without a cache at the requested static sizes; the batch size is 1 by default.

    Raises:
        ExportError: if a size is missing, or of a dimension that the inputs do not have.
    """
    default = {"batch": 1} if "batch" in subject.sizes else {}
    return Reference(subject.at({**default, **options.static}), FLOAT32)


def export_as(fmt: Format, source: Path, output: Path, options: ExportOptions, *, force: bool) -> ExportReport:
    """Export the model of a Hugging Face folder, check it in its runtime, then give the folder its final name.

    Raises:
        ExportError: if it cannot be exported, the file does not agree with the model, or `output` may not be written.
    """
    require_output(source, output, force)
    reference = fmt.reference(source, options)
    subject = reference.subject
    with new_folder(output, force) as folder:
        start = time.perf_counter()
        facts = fmt.write(subject, folder, options)
        written = time.perf_counter()
        runner = fmt.open(folder / fmt.file, subject.inputs, subject.outputs)
        seconds = {"export": written - start, "open": time.perf_counter() - written}
        parity = {fmt.target: compared(reference, runner, options.quant)}
        table = {
            "versions": versions(fmt.packages), "inputs": subject.inputs, "outputs": subject.outputs,
            "parameters": sum(p.numel() for p in subject.module.parameters()), "bytes": size(folder, fmt.file),
            **facts, "seconds": seconds,
        }  # fmt: skip
        report = finish(folder, source, OnnxTarget(fmt.target), options, table, parity)
    return replace(report, output=output)


def verify(fmt: Format, folder: Path, report: Mapping[str, Any]) -> FolderVerification:
    """Repeat the check of a folder, against its source model if that still exists.

    Raises:
        VerificationError: if a file is missing or has another size.
        ExportError: if it cannot be opened, or no longer agrees.
    """
    require_size(f"{folder / fmt.file} has", size(folder, fmt.file), report)
    runner = fmt.open(folder / fmt.file, *(tuple(report.get(kind, ())) for kind in ("inputs", "outputs")))
    verification = FolderVerification(folder, fmt.target, int(report.get("parameters", 0)), ["it opens"])
    source = source_of(report)
    if source is not None:
        options = ExportOptions(**report.get("options", {}))
        verification.max_error = float(compared(fmt.reference(source, options), runner, options.quant)["worst"])
        verification.checks.append(f"it agrees with the model in {source}")
    return verification


def size(folder: Path, file: str) -> int:
    """Size in bytes of a file and of others with the same stem."""
    return sum(path.stat().st_size for path in folder.glob(f"{Path(file).stem}.*"))
