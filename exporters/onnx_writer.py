"""What all targets of ONNX files share: export, quantise, check, report, and only then a name."""

import json
import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from graphprune import hf
from graphprune.atomic import check_output, new_folder
from graphprune.contracts import ExportOptions, ExportReport
from graphprune.exporters.decoders import decoder_subject, is_decoder
from graphprune.exporters.encoders import encoder_subject
from graphprune.exporters.folders import copy_beside, require_apart
from graphprune.exporters.onnx_files import OPSET, OPSETS, save_onnx, to_onnx
from graphprune.exporters.onnx_quantise import BITS, quantise
from graphprune.exporters.onnx_runtime import CPU
from graphprune.exporters.subjects import Subject
from graphprune.exporters.validation import Reference, validate

REPORT = "export_report.json"
_PACKAGES = ("graphprune", "torch", "transformers", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime")

#: What every target of ONNX files takes.
TAKES: dict[str, Collection[object]] = {
    "dtype": ("fp32", "fp16"), "quant": tuple(BITS), "opset": OPSETS, "static": ("batch", "sequence", "past"),
}  # fmt: skip

#: Changes a checked model in memory and its file in a folder; returns notes for the report.
Last = Callable[[ir.Model, Path], list[str]]


def export_folder(
    source: Path, output: Path, target: str, options: ExportOptions, *, force: bool, last: Last | None = None,
    providers: Callable[[Path], Sequence[str]] = lambda path: (CPU,),
) -> ExportReport:  # fmt: skip
    """Export the model of a Hugging Face folder; a decoder with its cache as inputs and outputs.

    Raises:
        ExportError: as `write`.
    """
    require_apart(source, output)
    check_output(output, force)
    subject = subject_of(source, options)
    return write(subject, source, output, target, options, force=force, last=last, providers=providers)


def subject_of(source: Path, options: ExportOptions) -> Subject:
    """The model of a folder, ready to be exported with these options."""
    model = hf.module(source)
    if (options.opset or OPSET) < OPSET:  # there is no operator for attention, and the fused one tests for NaN
        model.set_attn_implementation("eager")
    subject = subject_of_model(model, source)
    subject = subject.at(options.static) if options.static else subject
    return subject.to(torch.float16) if options.dtype == "fp16" else subject


def subject_of_model(model: nn.Module, folder: Path) -> Subject:
    """A model, ready to be exported; `folder` may say how large its images are."""
    return decoder_subject(model) if is_decoder(model) else encoder_subject(model, folder)


def write(
    subject: Subject, source: Path | None, output: Path, target: str, options: ExportOptions, *, force: bool,
    of_source: bool = True, last: Last | None = None, providers: Callable[[Path], Sequence[str]] = lambda path: (CPU,),
) -> ExportReport:  # fmt: skip
    """Export, check, and only then give the folder its name; `last` is what a target does to a checked model.

    Tokenizer and settings come from `source`; only if it is the model `of_source` may a later check compare with it.

    Raises:
        ExportError: if it cannot be exported, the file does not agree with the model, or `output` may not be written.
    """
    start = time.perf_counter()
    model = to_onnx(subject, options.opset or OPSET).model
    seconds = {"export": time.perf_counter() - start}
    with new_folder(output, force) as folder:
        path, reference = save_onnx(model, folder), Reference.of(subject)
        if options.quant != "none":
            validate(reference, path, "none")
            model = quantise(model, options.quant, standard=options.portable or last is None)
            path = save_onnx(model, folder)
        notes = last(model, folder) if last else []
        table, checked = validate(reference, path, options.quant, providers(path))
        table = {**table, "notes": notes, "seconds": seconds | table["seconds"]}
        table |= {} if of_source else {"source": None}
        report = finish(folder, source, target, options, table, checked)
    return replace(report, output=output)


def finish(
    folder: Path, source: Path | None, target: str, options: ExportOptions, table: Mapping[str, Any],
    parity: Mapping[str, Any],
) -> ExportReport:  # fmt: skip
    """Add what generation needs, and the report."""
    if source is not None:
        copy_beside(source, folder)
        (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    whole = {
        "target": target, "source": str(source.resolve()) if source is not None else None, "versions": versions(),
        "options": asdict(options), "machine": platform.machine(), "threads": torch.get_num_threads(), **table,
        "parity": parity,
    }  # fmt: skip
    (folder / REPORT).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    return ExportReport(target, folder, sorted(path.name for path in folder.iterdir()), whole)


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """The versions of what takes part in an export; of `more` packages besides."""
    found = {}
    for name in (*_PACKAGES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # one of the two runtimes is never there
            continue
    return found
