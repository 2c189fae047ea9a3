"""Export encoders and vision models as LiteRT files (.tflite), for phones and microcontrollers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import ExportError, because
from graphprune.execution.module_state import quiet_exporters
from graphprune.exporters.checks.validation import Reference
from graphprune.exporters.contract import NO_OPTIONS, ExportOptions, ExportReport, ExportTarget, Needs
from graphprune.exporters.export_folders.onnx_writer import subject_of_model
from graphprune.exporters.export_folders.package_formats import (
    Format,
    export_as,
    fixed_size,
    import_package,
    verify,
)
from graphprune.exporters.onnx_tools.program_subjects import saved_subject
from graphprune.exporters.subjects.decoders import is_decoder
from graphprune.exporters.subjects.subject import Subject
from graphprune.huggingface import model_folder

FILE = "model.tflite"


def export(source: Path, output: Path, options: ExportOptions = NO_OPTIONS, *, force: bool = False) -> ExportReport:
    """Export the encoder or vision model of a Hugging Face folder as model.tflite, all sizes fixed.

    Raises:
        PackageError: if LiteRT is missing or broken.
        ExportError: if the model is a decoder or cannot be exported, the file does not agree with it, or `output` may
            not be written.
    """
    options.require("litert", static=("batch", "sequence"))
    import_package("litert_torch", "litert")
    return export_as(FORMAT, source, output, options, force=force)


class ByName(nn.Module):
    """Subject called with keywords that returns outputs by name: LiteRT retains these names."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.module, self.subject = subject.module, subject

    def forward(self, **feeds: Tensor) -> dict[str, Tensor]:
        """Outputs by name."""
        return self.subject.run(feeds)


@dataclass(frozen=True)
class LitertRunner:
    """Signature of a file in LiteRT's interpreter."""

    signature: Any
    input_details: Mapping[str, Any]

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name; integers are cast to the 32 bits that the file has."""
        arrays = {
            name: feeds[name].contiguous().numpy().astype(kind["dtype"]) for name, kind in self.input_details.items()
        }
        try:
            values = self.signature(**arrays)
        except (RuntimeError, ValueError) as fault:
            raise ExportError(f"LiteRT failed{because(fault)}") from fault
        return {name: torch.from_numpy(array.copy()) for name, array in values.items()}


def _reference(source: Path, options: ExportOptions) -> Reference:
    if model_folder.holds_graph(source):
        return fixed_size(saved_subject(source), options)
    model = model_folder.module(source)
    if is_decoder(model):
        raise ExportError(
            f"{type(model).__name__} generates text, and the conversion to LiteRT does not support its cache, which "
            "changes with every call; use target executorch for phones, or openvino or onnx"
        )
    return fixed_size(subject_of_model(model, source), options)


def _write(subject: Subject, folder: Path, options: ExportOptions) -> dict[str, Any]:
    litert = import_package("litert_torch", "litert")
    try:
        with quiet_exporters(), torch.no_grad():
            made = litert.convert(ByName(subject), (), subject.example())
            made.export(str(folder / FILE))
    except Exception as fault:  # its passes raise anything
        raise ExportError(f"LiteRT cannot convert the model{because(fault)}") from fault
    return {}


def _open(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> LitertRunner:
    interpreter = import_package("ai_edge_litert.interpreter", "litert")
    try:
        signature = interpreter.Interpreter(str(path), num_threads=torch.get_num_threads()).get_signature_runner()
    except (RuntimeError, ValueError) as fault:
        raise ExportError(f"LiteRT cannot open {path.name}{because(fault)}; export it again") from fault
    return LitertRunner(signature, signature.get_input_details())


FORMAT = Format("litert", FILE, ("litert-torch", "ai-edge-litert"), _reference, _write, _open)

TARGET = ExportTarget(
    export,
    Needs(
        ("stock", "per-layer", "free"),
        8,
        8,
        "XNNPACK, which runs the file on processors, takes 8 numbers at a time",
        graphs=True,
    ),
    partial(verify, FORMAT),
)
