"""Export models as ONNX for phones: fixed shapes, attention as matrix products, and a copy in .ort format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from graphprune.errors import ExportError, because
from graphprune.execution.module_state import quiet_exporters
from graphprune.exporters.contract import NO_OPTIONS, ExportOptions, ExportReport, ExportTarget, Needs
from graphprune.exporters.export_folders.onnx_writer import SUPPORTED, OnnxTarget, subject_of, write
from graphprune.exporters.model_folders.folder_files import require_output
from graphprune.exporters.onnx_tools.onnx_files import MODEL
from graphprune.exporters.onnx_tools.onnx_subjects import is_stored
from graphprune.exporters.onnx_tools.usability import usability
from graphprune.exporters.subjects.subject import Subject
from graphprune.huggingface import model_folder
from graphprune.support.packages import load
from graphprune.support.packages import onnx_ir as ir

#: Default sizes; those of a decoder are one token at a time in a window of 256.
DEFAULT_SIZES = {"batch": 1, "sequence": 128, "past": 255, "written": 32}
_OPSET = 20  # the newest that converters for devices support


def export(source: Path, output: Path, options: ExportOptions = NO_OPTIONS, *, force: bool = False) -> ExportReport:
    """Export the model of a Hugging Face folder at fixed sizes, with a report of the parts that accelerators support.

    A decoder of fixed sizes reads `sequence` tokens after `past` positions of cache; unfilled positions are masked, on
    the left. Quantized weights are multiplied by operators of ONNX Runtime, which its packages for devices have.

    Raises:
        ExportError: if it cannot be exported, a file does not agree with the model, or `output` may not be written.
    """
    options.require("onnx-mobile", **SUPPORTED)
    require_output(source, output, force)
    options = replace(options, opset=options.opset or (None if is_stored(source) else _OPSET))
    subject = subject_of(source, options)
    if not options.static:
        options = replace(options, static=_default_sizes(source, subject))
        subject = subject.at(options.static)
    return write(subject, source, output, OnnxTarget("onnx-mobile", _finished), options, force=force)


def _default_sizes(source: Path, subject: Subject) -> dict[str, int]:
    """Default sizes of the dimensions that this model has, limited by its context length; 1 for first ones.

    Raises:
        ExportError: if one has no default.
    """
    most = _context_length(source) or max(DEFAULT_SIZES.values())
    defaults = {**dict.fromkeys(subject.leading, 1), **DEFAULT_SIZES}
    if unknown := [name for name in subject.sizes if name not in defaults]:
        raise ExportError(
            f"the size of {unknown[0]} has no default; pass --static {','.join(f'{name}=N' for name in subject.sizes)}"
        )
    sizes = {name: min(defaults[name], most) for name in subject.sizes}
    return sizes | {"sequence": 1, "past": min(DEFAULT_SIZES["past"], most - 1)} if "past" in sizes else sizes


def _context_length(source: Path) -> int | None:
    """Context length, if the configuration has one."""
    config = model_folder.config(source).get_text_config() if (source / model_folder.CONFIG).is_file() else None
    return getattr(config, "max_position_embeddings", None)


def _finished(model: ir.Model, folder: Path) -> dict[str, Any]:
    """Write the .ort file, and report which operators accelerators support."""
    _to_ort(folder / MODEL)
    return {"usability": usability(folder / MODEL)}


def _to_ort(path: Path) -> None:
    """Convert to .ort with optimizations that hold on any processor, as the file may run on another machine.

    Raises:
        ExportError: if ONNX Runtime cannot convert it.
    """
    converter = load("onnxruntime.tools.convert_onnx_models_to_ort")
    try:
        with quiet_exporters():
            converter.convert_onnx_models_to_ort(
                path, optimization_styles=[converter.OptimizationStyle.Fixed], target_platform="arm"
            )
    except Exception as fault:  # its errors share no base class
        raise ExportError(f"{path.name} cannot become an .ort file{because(fault)}") from fault


TARGET = ExportTarget(
    export,
    Needs(
        ("per-layer", "stock", "free"),
        32,
        8,
        "stored blocks hold 32 weights, and kernels of ARM processors take 8 channels at a time",
    ),
)
