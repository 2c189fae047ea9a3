"""Exported folders of any target in the runtimes that they are for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from graphprune.errors import ExportError
from graphprune.exporters.checks.genai_runtime import GenaiModel
from graphprune.exporters.export_folders import export_report
from graphprune.exporters.export_folders.onnx_writer import subject_of_model
from graphprune.exporters.export_folders.package_formats import import_package
from graphprune.exporters.gguf_tools.gguf_file import MODEL as GGUF
from graphprune.exporters.gguf_tools.gguf_runtime import open_file
from graphprune.exporters.onnx_tools.onnx_files import model_file
from graphprune.exporters.onnx_tools.sessions import CPU, open_model
from graphprune.exporters.targets import executorch, litert, openvino
from graphprune.huggingface import model_folder

#: Targets whose file a package of their own runs.
FORMATS = {module.FORMAT.target: module.FORMAT for module in (executorch, litert, openvino)}


@dataclass(frozen=True)
class Opened:
    """Runner of a folder, the names of its inputs, and the length of a text where that is fixed."""

    runs: Any  # a `Runs`, or what writes text in another way: see `readers`
    names: tuple[str, ...]
    length: int | None


def opened(folder: Path, provider: str = CPU, threads: int = 0, length: int = 0) -> Opened:
    """Open a folder by the package of its target, by ONNX Runtime, or by transformers; decoders for texts of so many
    tokens.

    Raises:
        ExportError: if that is not installed, or does not open it.
    """
    if threads:
        torch.set_num_threads(threads)  # by which the runtimes go here, but for one
    report = export_report.read(folder / export_report.REPORT)
    if "target" not in report:
        raise ExportError(f"{folder} has no {export_report.REPORT}; export a model there first")
    if report["target"] == "executorch":
        import_package("executorch.extension.pybindings.portable_lib", "executorch")._unsafe_reset_threadpool(
            torch.get_num_threads()
        )
    runs, names = _opened(folder, report, provider, length)
    return Opened(runs, names, report["options"]["static"].get("sequence"))


def _opened(folder: Path, report: Mapping[str, Any], provider: str, length: int) -> tuple[Any, tuple[str, ...]]:
    path, target = model_file(folder), report["target"]
    if target == "genai":
        return GenaiModel.open(folder), ()
    if target == "gguf":
        return open_file(folder / GGUF, length), ()
    if target in FORMATS:
        made, names = FORMATS[target], tuple(report["inputs"])
        return made.open(folder / made.file, names, report["outputs"]), names
    if path is not None:
        runner = open_model(path, provider)
        return runner, tuple(runner.inputs)
    subject = subject_of_model(model_folder.module(folder), folder)
    return subject, subject.inputs
