"""Shared steps of all targets with ONNX files: export, quantize, check, report, and then the final name."""

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
from graphprune.exporters.model_folders.folder_files import copy_companion_files, require_output
from graphprune.exporters.onnx_tools.onnx_files import OPSET, OPSETS, model_file, save_onnx, to_onnx
from graphprune.exporters.onnx_tools.onnx_quantize import BITS, least_opset, quantize
from graphprune.exporters.onnx_tools.onnx_subjects import OnnxModule, is_stored, stored_graph, stored_subject
from graphprune.exporters.onnx_tools.sessions import CPU, open_model
from graphprune.exporters.subjects.decoders import decoder_subject, is_decoder
from graphprune.exporters.subjects.encoders import encoder_subject
from graphprune.exporters.subjects.subject import Subject
from graphprune.huggingface import model_folder
from graphprune.support.atomic_output import new_folder
from graphprune.support.packages import load
from graphprune.support.packages import onnx_ir as ir

#: Options that every target of ONNX files supports.
SUPPORTED: dict[str, Collection[object]] = {
    "dtype": ("fp32", "fp16"),
    "quant": tuple(BITS),
    "opset": OPSETS,
    "static": ("batch", "sequence", "past", "written"),
}

#: Function of a checked model in memory and its folder: changes its file, moves it (`model_file` must still return it),
#: or adds files; returns facts for the report.
PostProcess = Callable[["ir.Model", Path], dict[str, Any]]

#: Function that runs a complete folder in the software that it is meant for; returns facts for the report.
FolderProof = Callable[[Path], Mapping[str, Any]]


@dataclass(frozen=True)
class OnnxTarget:
    """A target of ONNX files: post-processing of a checked model, the providers on which the result is checked, and the
    proof of the whole folder."""

    name: str
    post_process: PostProcess | None = None
    providers: Callable[[Path], Sequence[str]] = lambda path: (CPU,)
    proof: FolderProof | None = None


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
    """The model of a folder, a transformers or an exported one, as a subject for export with these options."""
    subject = stored_subject(source, options) if is_stored(source) else _subject_of_folder(source, options)
    return subject.at(options.static) if options.static else subject


def _subject_of_folder(source: Path, options: ExportOptions) -> Subject:
    model = model_folder.module(source)
    if (options.opset or OPSET) < OPSET:  # without an Attention operator; decomposed fused attention would test for NaN
        model.set_attn_implementation("eager")
    subject = subject_of_model(model, source)
    return subject.to(torch.float16) if options.dtype == "fp16" else subject


def subject_of_model(model: nn.Module, folder: Path) -> Subject:
    """A model as a subject for export; `folder` may have the size of its images."""
    return decoder_subject(model) if is_decoder(model) else encoder_subject(model, folder)


def graph_of(subject: Subject, opset: int | None, least: int = 0) -> ir.Model:
    """The subject as an ONNX graph; one of a file without an explicit `opset` has that of the file, `least` at least.

    Raises:
        ExportError: if it cannot be converted.
    """
    if isinstance(subject.module, OnnxModule):
        return stored_graph(subject, opset, least)
    model: ir.Model = to_onnx(subject, opset or OPSET).model
    return model


def write(
    subject: Subject, source: Path | None, output: Path, target: OnnxTarget, options: ExportOptions, *, force: bool,
    comparable: bool = True,
) -> ExportReport:  # fmt: skip
    """Export and check, then give the folder its final name.

    Tokenizer and settings are copied from `source`; if it is `comparable`, later checks compare with its model.

    Raises:
        ExportError: if it cannot be exported, the file does not agree with the model, or `output` may not be written.
    """
    for package in ("onnxscript", "onnxruntime"):  # before the work that would be in vain
        load(package)
    start = time.perf_counter()
    standard = options.portable or target.post_process is None
    model = graph_of(subject, options.opset, least_opset(options.quant, standard=standard))
    seconds = {"export": time.perf_counter() - start}
    with new_folder(output, force) as folder:
        path, reference = save_onnx(model, folder), Reference.of(subject)
        if options.quant != "none":
            validate(reference, path, "none")
            model = quantize(model, options.quant, standard=standard)
            path = save_onnx(model, folder)
        facts = target.post_process(model, folder) if target.post_process else {}
        path = model_file(folder) or path
        table, checked = validate(reference, path, options.quant, target.providers(path))
        for other in sorted(folder.glob("*.ort")):
            checked[other.name] = compared(reference, open_model(other), options.quant)
        table = {**table, **facts, "seconds": seconds | table["seconds"]}
        table |= {} if comparable else {"source": None}
        report = finish(folder, source, target, options, table, checked)
    return replace(report, output=output)


def finish(
    folder: Path, source: Path | None, target: OnnxTarget, options: ExportOptions, table: Mapping[str, Any],
    parity: Mapping[str, Any],
) -> ExportReport:  # fmt: skip
    """Add the files for generation, run the target's proof, and write the report."""
    if source is not None:
        copy_companion_files(source, folder)
        config, copied = source / model_folder.CONFIG, folder / model_folder.CONFIG
        if config.exists() and not copied.exists():  # a target may have written its own
            copied.write_bytes(config.read_bytes())
    table = {**table, **(target.proof(folder) if target.proof else {})}
    return write_report(folder, source, target.name, options, table, parity)
