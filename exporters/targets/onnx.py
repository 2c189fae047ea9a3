"""Export models and programs as ONNX with standard operators, for every runtime that reads it."""

from pathlib import Path

from graphprune.exporters.contract import NO_OPTIONS, ExportOptions, ExportReport, ExportTarget, Needs
from graphprune.exporters.export_folders.onnx_writer import SUPPORTED, OnnxTarget, export_folder, write
from graphprune.exporters.export_folders.rewritten_file import write_again
from graphprune.exporters.onnx_tools.program_subjects import program_subject
from graphprune.ir.program import Program
from graphprune.support.atomic_output import check_output

_ONNX = OnnxTarget("onnx")


def export(source: Path, output: Path, options: ExportOptions = NO_OPTIONS, *, force: bool = False) -> ExportReport:
    """Export the model of a Hugging Face folder; a decoder with its cache as inputs and outputs.

    Raises:
        ExportError: if it cannot be exported, the file does not agree with the model, or `output` may not be written.
    """
    options.require("onnx", **SUPPORTED)
    return export_folder(source, output, _ONNX, options, force=force)


def export_program(program: Program, output: Path, *, force: bool = False) -> ExportReport:
    """Export a program by the names of its inputs: a program of `cached_decoder` becomes a decoder with cache.

    A program of an ONNX file has the interface of the file.

    Raises:
        ExportError: as `export`.
    """
    check_output(output, force)
    if program.source is not None and program.source.kind == "onnx":
        return write_again(program, output, force=force)
    source = program.source.path if program.source is not None and program.source.kind == "huggingface" else None
    return write(program_subject(program), source, output, _ONNX, NO_OPTIONS, force=force, comparable=False)


TARGET = ExportTarget(
    export,
    Needs(
        ("per-layer", "stock", "free"),
        32,
        16,
        "ONNX Runtime runs any width; products go in blocks of 32, convolutions in blocks of 16 channels",
    ),
)
