"""Verification of a saved or exported folder: the checks made when it was written are repeated."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import ExportError, GraphpruneError, PackageError, VerificationError
from graphprune.exporters import EXPORTERS
from graphprune.exporters.checks import parity
from graphprune.exporters.checks.agreement import error, numbers
from graphprune.exporters.checks.generation import Decoder
from graphprune.exporters.checks.validation import Reference, compared
from graphprune.exporters.contract import ExportOptions, ExportTarget, FolderVerification
from graphprune.exporters.export_folders.export_report import (
    REPORT,
    read,
    require_intact_weights,
    require_size,
    source_of,
)
from graphprune.exporters.export_folders.onnx_writer import subject_of, subject_of_model
from graphprune.exporters.onnx_tools.onnx_files import MODEL, model_file, stored_bytes
from graphprune.exporters.onnx_tools.onnx_files import check as check_file
from graphprune.exporters.onnx_tools.sessions import OnnxRunner, open_model
from graphprune.exporters.subjects.subject import PAST
from graphprune.huggingface import model_folder

_TEST_TOKENS = 6


def verify_folder(folder: Path | str) -> FolderVerification:
    """Repeat the checks of a folder written by `save` or by an exporter.

    Raises:
        VerificationError: if a file is missing or damaged, or the outputs no longer agree.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise VerificationError(f"{folder} is not a folder; name one that graphprune wrote")
    path = model_file(folder)
    if path is None and not any((folder / name).is_file() for name in (model_folder.CONFIG, REPORT)):
        raise VerificationError(
            f"{folder} has no {MODEL} and no {model_folder.CONFIG}; name a folder that graphprune wrote"
        )
    try:
        return _verify(folder, path)
    except (VerificationError, PackageError):
        raise
    except GraphpruneError as fault:
        raise VerificationError(f"{folder}: {fault}") from fault


def _verify(folder: Path, path: Path | None) -> FolderVerification:
    """Verify with the verifier of the target that wrote the folder, else as an ONNX or Hugging Face folder."""
    report = read(folder / REPORT)
    target: ExportTarget | None = EXPORTERS.get(str(report.get("target")))
    if target is not None and target.verify is not None:
        return target.verify(folder, report)
    return _verify_onnx(folder, path) if path is not None else _verify_huggingface(folder)


def _verify_huggingface(folder: Path) -> FolderVerification:
    checks = require_intact_weights(folder)
    model = model_folder.module(folder)
    checks.append("the model loads with all its weights")
    verification = FolderVerification(folder, "huggingface", _parameters(model), checks)
    verification.checks.append(_check_outputs(model, folder))
    expected = read(folder / "report.json").get("parameters_after")
    if expected is not None and expected != verification.parameters:
        raise VerificationError(
            f"{folder} has {verification.parameters} parameters, expected {expected} from its report.json; save it "
            "again"
        )
    if expected is not None:
        verification.checks.append("it has as many parameters as its report says")
    return verification


def _check_outputs(model: nn.Module, folder: Path) -> str:
    try:
        subject = subject_of_model(model, folder)
    except ExportError as unknown:
        return f"it was not run: {unknown}"
    _require_finite(folder, numbers(list(subject.run(subject.example()).values())))
    return "its outputs are finite"


def _verify_onnx(folder: Path, path: Path) -> FolderVerification:
    report = read(folder / REPORT)
    check_file(path)
    runner = open_model(path)
    verification = FolderVerification(
        folder, "onnx", int(report.get("parameters", 0)), ["the checker of onnx passes", "it opens"]
    )
    if report:
        require_size(f"{path} has", stored_bytes(path), report)
    target: ExportTarget | None = EXPORTERS.get(str(report.get("target")))
    verification.checks += target.check(folder) if target is not None and target.check is not None else []
    bound = _bound(report)
    source, options = source_of(report), ExportOptions(**report.get("options", {}))
    if source is not None:
        reference = Reference.of(subject_of(source, options))
        for other in sorted(folder.glob("*.ort")):
            compared(reference, open_model(other), options.quant)
        verification.max_error = float(compared(reference, runner, options.quant)["worst"])
        verification.checks.append(f"it agrees with the model in {source}")
    elif any(name.startswith(PAST) for name in runner.inputs):
        verification.max_error = _cache_error(path, runner, bound)
        verification.checks.append("decoding token by token agrees with reading the text at once")
    return verification


def _bound(report: dict[str, Any]) -> float:
    """The error bound of the export's own check."""
    checked = report.get("parity", {}).values()
    return max((float(one.get("bound", parity.FLOAT32)) for one in checked), default=parity.FLOAT32)


def _cache_error(path: Path, runner: OnnxRunner, bound: float) -> float:
    """Error of decoding token by token against one pass over the text: checks the cache without the source model."""
    decoder = Decoder(runner)
    ids = torch.arange(1, _TEST_TOKENS + 1).view(1, -1)
    logits_at_once = decoder.step(ids, 0, decoder.empty())[0]
    past, parts = decoder.empty(), []
    for end in range(1, _TEST_TOKENS + 1):
        logits, past = decoder.step(ids[:, :end], end - 1, past)
        parts.append(logits)
    _require_finite(path.parent, [logits_at_once])
    worst = error(torch.cat(parts, 1), logits_at_once).relative
    if not worst <= bound:
        raise VerificationError(
            f"{path}: token by token its logits differ by {worst:.1e} (tolerance {bound:.0e}); export again"
        )
    return worst


def _require_finite(folder: Path, tensors: list[Tensor]) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise VerificationError(f"{folder}: the model returns NaN or infinity; its weights are damaged, save it again")


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
