"""The report beside an export: what was written with what, and what a later check holds the folder to."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from graphprune.errors import ExportError, VerificationError, because
from graphprune.exporters.contract import ExportOptions, ExportReport
from graphprune.exporters.onnx_tools.onnx_files import MODEL
from graphprune.exporters.onnx_tools.onnx_subjects import is_stored
from graphprune.huggingface import model_folder
from graphprune.reports.report import FILE as PRUNED
from graphprune.reports.report import digests

REPORT = "export_report.json"
_WEIGHTS = ("*.safetensors", model_folder.PROGRAM, f"{MODEL}*")
_PACKAGES = (
    "graphprune", "torch", "transformers", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime",
    "onnxruntime-genai-cuda", "onnxruntime-genai", "gguf", "llama-cpp-python",
)  # fmt: skip


def write_report(
    folder: Path, source: Path | None, target: str, options: ExportOptions, table: Mapping[str, Any],
    parity: Mapping[str, Any],
) -> ExportReport:  # fmt: skip
    """What was written, with what, and how far it is from the source."""
    whole = {
        "target": target, "source": str(source.resolve()) if source is not None else None,
        "parameters_before": _before(source), "source_bytes": _bytes(source), "options": asdict(options),
        "versions": versions(), "machine": platform.machine(), "threads": torch.get_num_threads(), **table,
        "parity": parity,
    }  # fmt: skip
    (folder / REPORT).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return ExportReport(target, folder, files, whole)


def _before(source: Path | None) -> int | None:
    """How many parameters the source had before it was pruned, if its report says so."""
    path = source / PRUNED if source is not None else None
    return model_folder.read_json(path).get("parameters_before") if path is not None and path.is_file() else None


def _bytes(source: Path | None) -> int | None:
    """The size of the files that hold the weights of the source."""
    found = [path for pattern in _WEIGHTS for path in source.glob(pattern)] if source is not None else []
    return sum(path.stat().st_size for path in found) or None


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """The versions of what takes part in an export; of `more` packages besides."""
    found = {}
    for name in (*_PACKAGES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # one of the two runtimes is never there
            continue
    return found


def read(path: Path) -> dict[str, Any]:
    """The report in a file; empty where there is none.

    Raises:
        ExportError: if it is no JSON.
    """
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise ExportError(f"{path.name} is not valid JSON{because(fault)}; save or export the model again") from fault
    return table if isinstance(table, dict) else {}


def source_of(report: Mapping[str, Any]) -> Path | None:
    """The folder that was exported, if a model is still there."""
    if not report.get("source"):
        return None
    source = Path(report["source"])
    held = is_stored(source) or model_folder.holds_graph(source) or (source / model_folder.CONFIG).is_file()
    return source if held else None


def require_size(what: str, size: int, report: Mapping[str, Any]) -> None:
    """Refuse files that have another size than the report says; `what` is the beginning of a sentence on them.

    Raises:
        VerificationError: if they have.
    """
    if size != report.get("bytes"):
        raise VerificationError(f"{what} {size} bytes, its report says {report.get('bytes')}: export again")


def require_whole(folder: Path) -> list[str]:
    """Refuse a folder whose files of weights are not those that its report tells of; what was checked, in words.

    Raises:
        VerificationError: if one is damaged or gone.
    """
    told = read(folder / PRUNED).get("sha256") or {}
    found = digests(folder) if told else {}
    for name, expected in told.items():
        if found.get(name) != expected:
            what = f"has sha256 {found[name]}" if name in found else "is gone"
            raise VerificationError(
                f"{folder / name} {what}, {PRUNED} says {expected}: it was damaged or replaced; copy it "
                "again, or prune again"
            )
    return ["its weights are the bytes that were saved"] if told else []
