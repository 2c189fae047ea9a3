"""What all targets of other packages share: one main file, written by the package, run by it, checked, then named."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphprune.execution.module_state import quiet_exporters
from graphprune.exporters.checks.parity import FLOAT32, Runs
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
    """How a target of another package is made, and how its file is run, in an export and in a later check.

    `reference` is the model of a folder and how near the file must come to it; `write` puts `file`, and what belongs to
    it, into a folder, and returns facts for the report; `open` runs it by the names of inputs and outputs.
    """

    target: str
    file: str
    packages: tuple[str, ...]
    reference: Callable[[Path, ExportOptions], Reference]
    write: Callable[[Subject, Path, ExportOptions], dict[str, Any]]
    open: Callable[[Path, Sequence[str], Sequence[str]], Runs]


def library(module: str, extra: str) -> Any:
    """Import a module of a package that an extra installs, silently.

    Raises:
        PackageError: if the package is missing or broken.
    """
    with quiet_exporters():
        return load(module, extra)


def fixed_size(subject: Subject, options: ExportOptions) -> Reference:
    """A model without a cache at the sizes asked for; one input at a time, unless said otherwise.

    Raises:
        ExportError: if a size is left out, or of a dimension that the inputs do not have.
    """
    usual = {"batch": 1} if "batch" in subject.sizes else {}
    return Reference(subject.at({**usual, **options.static}), FLOAT32)


def export_as(made: Format, source: Path, output: Path, options: ExportOptions, *, force: bool) -> ExportReport:
    """Export the model of a Hugging Face folder, check it in its runtime, and only then give the folder its name.

    Raises:
        ExportError: if it cannot be exported, the file does not agree with the model, or `output` may not be written.
    """
    require_output(source, output, force)
    reference = made.reference(source, options)
    subject = reference.subject
    with new_folder(output, force) as folder:
        start = time.perf_counter()
        facts = made.write(subject, folder, options)
        written = time.perf_counter()
        runner = made.open(folder / made.file, subject.inputs, subject.outputs)
        seconds = {"export": written - start, "open": time.perf_counter() - written}
        parity = {made.target: compared(reference, runner, options.quant)}
        table = {
            "versions": versions(made.packages), "inputs": subject.inputs, "outputs": subject.outputs,
            "parameters": sum(p.numel() for p in subject.module.parameters()), "bytes": size(folder, made.file),
            **facts, "seconds": seconds,
        }  # fmt: skip
        report = finish(folder, source, OnnxTarget(made.target), options, table, parity)
    return replace(report, output=output)


def verify(made: Format, folder: Path, report: Mapping[str, Any]) -> FolderVerification:
    """Repeat the check of a folder; against the model it was made from, if that is still there.

    Raises:
        VerificationError: if a file is missing or has another size.
        ExportError: if it cannot be opened, or no longer agrees.
    """
    require_size(f"{folder / made.file} has", size(folder, made.file), report)
    runner = made.open(folder / made.file, *(tuple(report.get(kind, ())) for kind in ("inputs", "outputs")))
    found = FolderVerification(folder, made.target, int(report.get("parameters", 0)), ["it opens"])
    source = source_of(report)
    if source is not None:
        options = ExportOptions(**report.get("options", {}))
        found.max_error = float(compared(made.reference(source, options), runner, options.quant)["worst"])
        found.checks.append(f"it agrees with the model in {source}")
    return found


def size(folder: Path, file: str) -> int:
    """The bytes of a file and of those that carry its name but for the end of it."""
    return sum(path.stat().st_size for path in folder.glob(f"{Path(file).stem}.*"))
