"""What all targets of ONNX files share: export, quantise, check, report, and only then a name."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphprune.exporters.checks.validation import Reference, compared, validate
from graphprune.exporters.contract import ExportOptions, ExportReport
from graphprune.exporters.export_folders.export_report import write_report
from graphprune.exporters.model_folders.folder_files import copy_beside, require_output
from graphprune.exporters.onnx_tools.onnx_files import OPSET, OPSETS, model_file, save_onnx, to_onnx
from graphprune.exporters.onnx_tools.onnx_quantize import BITS, quantise
from graphprune.exporters.onnx_tools.onnx_subjects import OnnxModule, is_stored, stored_graph, stored_subject
from graphprune.exporters.onnx_tools.sessions import CPU, open_model
from graphprune.exporters.subjects.decoders import decoder_subject, is_decoder
from graphprune.exporters.subjects.encoders import encoder_subject
from graphprune.exporters.subjects.subject import Subject
from graphprune.huggingface import model_folder
from graphprune.support.atomic_output import new_folder
from graphprune.support.packages import onnx_ir as ir

#: What every target of ONNX files takes.
TAKES: dict[str, Collection[object]] = {
    "dtype": ("fp32", "fp16"),
    "quant": tuple(BITS),
    "opset": OPSETS,
    "static": ("batch", "sequence", "past", "written"),
}

#: Changes a checked model in memory and its file in a folder, or moves it to where `model_file` finds it, or adds
#: files; returns facts for the report.
Last = Callable[["ir.Model", Path], dict[str, Any]]

#: Runs what a folder is for, once all is in it; returns facts for the report.
Prove = Callable[[Path], Mapping[str, Any]]


@dataclass(frozen=True)
class OnnxTarget:
    """By what one target of ONNX files differs from another: what is done to a checked model at last, on which
    providers it is checked then, and how the whole folder is proved."""

    name: str
    last: Last | None = None
    providers: Callable[[Path], Sequence[str]] = lambda path: (CPU,)
    prove: Prove | None = None


def export_folder(
    source: Path, output: Path, target: OnnxTarget, options: ExportOptions, *, force: bool
) -> ExportReport:
    """Export the model of a Hugging Face folder; a decoder with its cache as inputs and outputs.

    Raises:
        ExportError: as `write`.
    """
    require_output(source, output, force)
    return write(subject_of(source, options), source, output, target, options, force=force)


def subject_of(source: Path, options: ExportOptions) -> Subject:
    """The model of a folder, of transformers or an exported one, ready to be exported with these options."""
    subject = stored_subject(source, options) if is_stored(source) else _subject_of_folder(source, options)
    return subject.at(options.static) if options.static else subject


def _subject_of_folder(source: Path, options: ExportOptions) -> Subject:
    model = model_folder.module(source)
    if (options.opset or OPSET) < OPSET:  # there is no operator for attention, and the fused one tests for NaN
        model.set_attn_implementation("eager")
    subject = subject_of_model(model, source)
    return subject.to(torch.float16) if options.dtype == "fp16" else subject


def subject_of_model(model: nn.Module, folder: Path) -> Subject:
    """A model, ready to be exported; `folder` may say how large its images are."""
    return decoder_subject(model) if is_decoder(model) else encoder_subject(model, folder)


def graph_of(subject: Subject, opset: int | None) -> ir.Model:
    """The subject in operators of ONNX.

    Raises:
        ExportError: if it cannot be said in them.
    """
    if isinstance(subject.module, OnnxModule):
        return stored_graph(subject, opset)
    model: ir.Model = to_onnx(subject, opset or OPSET).model
    return model


def write(
    subject: Subject, source: Path | None, output: Path, target: OnnxTarget, options: ExportOptions, *, force: bool,
    of_source: bool = True,
) -> ExportReport:  # fmt: skip
    """Export, check, and only then give the folder its name.

    Tokenizer and settings come from `source`; only if it is the model `of_source` may a later check compare with it.

    Raises:
        ExportError: if it cannot be exported, the file does not agree with the model, or `output` may not be written.
    """
    start = time.perf_counter()
    model = graph_of(subject, options.opset)
    seconds = {"export": time.perf_counter() - start}
    with new_folder(output, force) as folder:
        path, reference = save_onnx(model, folder), Reference.of(subject)
        if options.quant != "none":
            validate(reference, path, "none")
            model = quantise(model, options.quant, standard=options.portable or target.last is None)
            path = save_onnx(model, folder)
        told = target.last(model, folder) if target.last else {}
        path = model_file(folder) or path
        table, checked = validate(reference, path, options.quant, target.providers(path))
        for other in sorted(folder.glob("*.ort")):
            checked[other.name] = compared(reference, open_model(other), options.quant)
        table = {**table, **told, "seconds": seconds | table["seconds"]}
        table |= {} if of_source else {"source": None}
        report = finish(folder, source, target, options, table, checked)
    return replace(report, output=output)


def finish(
    folder: Path, source: Path | None, target: OnnxTarget, options: ExportOptions, table: Mapping[str, Any],
    parity: Mapping[str, Any],
) -> ExportReport:  # fmt: skip
    """Add what generation needs, try it, and write the report."""
    if source is not None:
        copy_beside(source, folder)
        if (source / model_folder.CONFIG).exists() and not (
            folder / model_folder.CONFIG
        ).exists():  # which may say more
            (folder / model_folder.CONFIG).write_bytes((source / model_folder.CONFIG).read_bytes())
    table = {**table, **(target.prove(folder) if target.prove else {})}
    return write_report(folder, source, target.name, options, table, parity)
