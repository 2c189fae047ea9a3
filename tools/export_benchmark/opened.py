"""Exported folders of any target in the runtimes that they are for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from graphprune import hf
from graphprune.exporters import reports
from graphprune.exporters.formats import FORMATS
from graphprune.exporters.onnx_files import model_file
from graphprune.exporters.onnx_runtime import CPU, open_model
from graphprune.exporters.onnx_writer import subject_of_model
from graphprune.exporters.parity import Runs


@dataclass(frozen=True)
class Opened:
    """What runs a folder, the names of the inputs that it takes, and how long a text must be where that is fixed."""

    runs: Runs
    names: tuple[str, ...]
    length: int | None


def opened(folder: Path, provider: str = CPU, threads: int = 0) -> Opened:
    """Open a folder by the package of its target, by ONNX Runtime, or by transformers.

    Raises:
        ExportError: if that is not installed, or does not open it.
    """
    if threads:
        torch.set_num_threads(threads)  # by which every runtime goes here
    report = reports.read(folder / reports.REPORT)
    runs, names = _opened(folder, report, provider)
    return Opened(runs, names, report["options"]["static"].get("sequence"))


def _opened(folder: Path, report: Mapping[str, Any], provider: str) -> tuple[Runs, tuple[str, ...]]:
    if report["target"] in FORMATS:
        made = FORMATS[report["target"]]
        names = tuple(report["inputs"])
        return made.open(folder / made.file, names, report["outputs"]), names
    path = model_file(folder)
    if path is not None:
        runner = open_model(path, provider)
        return runner, tuple(runner.inputs)
    subject = subject_of_model(hf.module(folder), folder)
    return subject, subject.inputs
