"""Saved models as half-precision ONNX, fused for ONNX Runtime on CUDA."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from graphprune.atomic import check_output, new_folder
from graphprune.contracts import ExportReport
from graphprune.errors import ExportError
from graphprune.exporters import EXPORTERS
from graphprune.exporters.agreement import error
from graphprune.exporters.folders import require_apart
from graphprune.exporters.onnx import finish, subject_of
from graphprune.exporters.onnx_files import MODEL, facts, save_onnx, to_onnx
from graphprune.exporters.onnx_runtime import CPU, CUDA, has_cuda, open_model
from graphprune.exporters.parity import FLOAT16, Parity, check, first_feeds
from graphprune.exporters.subjects import Subject

_MARGIN = 3  # an export may round in other places than PyTorch does, not much more
_USELESS = 5e-2


@EXPORTERS.register("onnx-gpu")
def export(source: Path, output: Path, *, force: bool = False) -> ExportReport:
    """Export the model of a Hugging Face folder in half precision, fused for CUDA where that works.

    It is compared with the same rounded weights computing in float32.

    Raises:
        ExportError: if it cannot be exported, the file does not agree with the model, or `output` may not be written.
    """
    require_apart(source, output)
    check_output(output, force)
    start = time.perf_counter()
    subject = subject_of(source).to(torch.float16)
    program = to_onnx(subject)
    exported = time.perf_counter() - start
    with new_folder(output, force) as folder:
        notes = _save(program, folder)
        table, parity = _checked(subject, folder)
        seconds = {"export": exported, **table.pop("seconds")}
        report = finish(folder, source, "onnx-gpu", {**table, "notes": notes, "seconds": seconds}, parity)
    return replace(report, output=output)


def _save(program: Any, folder: Path) -> list[str]:
    """Write the fused file, or the unfused one if the fused cannot be made or opened; notes say which and why."""
    plain = save_onnx(program, folder)
    try:
        with TemporaryDirectory(dir=folder, prefix=".fused-") as beside:
            _fuse(program)
            fused = save_onnx(program, Path(beside))
            open_model(fused)
            for path in (plain, plain.with_name(f"{plain.name}.data")):
                path.unlink(missing_ok=True)
            for path in fused.parent.iterdir():
                path.rename(folder / path.name)
    except ExportError as fault:
        return [f"not fused: {fault}"]
    return ["fused for the CUDA provider"]


def _fuse(program: Any) -> None:
    """Put operators of ONNX Runtime in the place of what they compute, with the rewriter of transformers.

    Raises:
        ExportError: if this version of transformers has none, or it fails; it is experimental.
    """
    try:
        from transformers.exporters.onnxruntime_fusions import fuse_for_onnxruntime
    except ImportError as fault:
        raise ExportError(f"this version of transformers has no fusions: {fault}") from fault
    try:
        fuse_for_onnxruntime(program.model, "cuda")
    except Exception as fault:  # whatever goes wrong in it, the unfused graph is right
        raise ExportError(f"the fusions of transformers failed: {type(fault).__name__}: {fault}") from fault


def _checked(subject: Subject, folder: Path) -> tuple[dict[str, Any], dict[str, Parity]]:
    """Facts and errors, on the CPU and, where there is a device, on CUDA."""
    path = folder / MODEL
    table = facts(path, subject)
    halved = subject.run(first_feeds(subject))
    reference = subject.to(torch.float32)
    own = own_error(halved, reference.run(first_feeds(reference)))
    parity, seconds = {}, {}
    for provider in [CPU, *[CUDA] * has_cuda(path)]:
        runner = open_model(path, provider)
        parity[provider] = check(reference, runner, max(FLOAT16, _MARGIN * own))
        seconds[f"open on {provider}"] = runner.seconds
    return {**table, "provider": runner.provider, "half_precision_itself": own, "seconds": seconds}, parity


def own_error(halved: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """By how much half precision alone, in PyTorch, changes the outputs, relative to their largest value.

    Raises:
        ExportError: if it changes them beyond use.
    """
    own = max(error(halved[name], reference[name]).relative for name in reference)
    if not own <= _USELESS:
        raise ExportError(
            f"half precision alone changes the outputs of this model by {own:.1e} relative to the largest value, "
            f"allowed are {_USELESS:.0e}: its values are too large or too close for it. Use target onnx"
        )
    return own
