"""Export models as half-precision ONNX, fused for ONNX Runtime on CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from graphprune.errors import ExportError, because
from graphprune.exporters.contract import NO_OPTIONS, ExportOptions, ExportReport, ExportTarget, Needs
from graphprune.exporters.export_folders.onnx_writer import SUPPORTED, OnnxTarget, export_folder
from graphprune.exporters.onnx_tools.onnx_files import MODEL, save_onnx
from graphprune.exporters.onnx_tools.sessions import CPU, CUDA, has_cuda, open_model
from graphprune.support.packages import onnx_ir as ir


def export(source: Path, output: Path, options: ExportOptions = NO_OPTIONS, *, force: bool = False) -> ExportReport:
    """Export the model of a Hugging Face folder in half precision, fused for CUDA where that works.

    It is compared with the model of the same rounded weights in float32. With `portable` it has standard operators
    only; with `static` sizes in addition, TensorRT builds an engine of it.

    Raises:
        ExportError: if it cannot be exported, the file does not agree with the model, or `output` may not be written.
    """
    options.require("onnx-gpu", **SUPPORTED, portable=(True,))
    options = replace(options, dtype=options.dtype or "fp16")
    target = OnnxTarget("onnx-gpu", _standard if options.portable else _fused, _providers)
    return export_folder(source, output, target, options, force=force)


def _providers(path: Path) -> Sequence[str]:
    return (CPU, CUDA) if has_cuda(path) else (CPU,)


def _standard(model: ir.Model, folder: Path) -> dict[str, Any]:
    return {"notes": ["standard operators only, for TensorRT"]}


def _fused(model: ir.Model, folder: Path) -> dict[str, Any]:
    """Write the fused file, or retain the unfused one if fusion or loading fails; the note has the reason."""
    try:
        with TemporaryDirectory(dir=folder, prefix=".fused-") as temporary:
            _fuse(model)
            fused = save_onnx(model, Path(temporary))
            open_model(fused)
            for path in folder.glob(f"{MODEL}*"):
                path.unlink()
            for path in fused.parent.iterdir():
                path.rename(folder / path.name)
    except ExportError as fault:
        return {"notes": [f"not fused: {fault}"]}
    return {"notes": ["fused for the CUDA provider"]}


def _fuse(model: ir.Model) -> None:
    """Replace subgraphs by fused operators of ONNX Runtime, with the rewriter of transformers.

    Raises:
        ExportError: if this version of transformers has none, or it fails; it is experimental.
    """
    try:
        from transformers.exporters.onnxruntime_fusions import fuse_for_onnxruntime
    except ImportError as fault:
        raise ExportError(f"this version of transformers has no fusions{because(fault)}") from fault
    try:
        fuse_for_onnxruntime(model, "cuda")
    except Exception as fault:  # whatever goes wrong in it, the unfused graph is right
        raise ExportError(f"the fusions of transformers failed{because(fault)}") from fault


TARGET = ExportTarget(
    export,
    Needs(("per-layer", "stock"), 64, 64, "tensor cores in half precision go in tiles of 64"),
)
