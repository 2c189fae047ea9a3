"""Report of an export (export_report.json), which records how a folder was made, for users and later checks."""

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
from graphprune.reports.report import FILE as PRUNING_REPORT
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
    """Write the report of an export: files, versions, options, facts, and the errors against the source."""
    report = {
        "target": target, "source": str(source.resolve()) if source is not None else None,
        "parameters_before": _parameters_before(source), "source_bytes": _weight_bytes(source),
        "options": asdict(options), "versions": versions(), "machine": platform.machine(),
        "threads": torch.get_num_threads(), **table, "parity": parity,
    }  # fmt: skip
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return ExportReport(target, folder, files, report)


def _parameters_before(source: Path | None) -> int | None:
    """Number of parameters before pruning, from the source's report; None without one."""
    path = source / PRUNING_REPORT if source is not None else None
    return model_folder.read_json(path).get("parameters_before") if path is not None and path.is_file() else None


def _weight_bytes(source: Path | None) -> int | None:
    """Size in bytes of the files with the weights of the source; None without any."""
    paths = [path for pattern in _WEIGHTS for path in source.glob(pattern)] if source is not None else []
    return sum(path.stat().st_size for path in paths) or None


def versions(extra: Sequence[str] = ()) -> dict[str, str]:
    """Versions of the packages that take part in an export, and of `extra` ones."""
    installed = {}
    for name in (*_PACKAGES, *extra):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:  # only one of the two runtimes is installed
            continue
    return installed


def read(path: Path) -> dict[str, Any]:
    """The report in a file; an empty one if there is no file.

    Raises:
        ExportError: if the file is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as fault:
        raise ExportError(f"{path.name} is not valid JSON{because(fault)}; save or export the model again") from fault
    return table if isinstance(table, dict) else {}


def source_of(report: Mapping[str, Any]) -> Path | None:
    """The folder that was exported, if it still has a model."""
    if not report.get("source"):
        return None
    source = Path(report["source"])
    has_model = is_stored(source) or model_folder.holds_graph(source) or (source / model_folder.CONFIG).is_file()
    return source if has_model else None


def require_size(subject: str, size: int, report: Mapping[str, Any]) -> None:
    """Check the size of files against the report; `subject` begins the message, as in "model.onnx has".

    Raises:
        VerificationError: if it differs.
    """
    if size != report.get("bytes"):
        raise VerificationError(f"{subject} {size} bytes, expected {report.get('bytes')} from its report: export again")


def require_intact_weights(folder: Path) -> list[str]:
    """Check the weight files of a folder against the digests in its report; return the checks that passed, as text.

    Raises:
        VerificationError: if a file is damaged or missing.
    """
    expected_digests = read(folder / PRUNING_REPORT).get("sha256") or {}
    actual_digests = digests(folder) if expected_digests else {}
    for name, expected in expected_digests.items():
        if actual_digests.get(name) != expected:
            problem = f"has sha256 {actual_digests[name]}" if name in actual_digests else "is missing"
            raise VerificationError(
                f"{folder / name} {problem}, expected {expected} from {PRUNING_REPORT}: it was damaged or replaced; "
                "copy it again, or prune again"
            )
    return ["its weights are the bytes that were saved"] if expected_digests else []
