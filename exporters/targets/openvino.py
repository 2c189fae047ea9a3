"""Export models as OpenVINO IR, converted from ONNX, for Intel's processors, graphics and NPUs."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphprune.errors import ExportError, because
from graphprune.exporters.checks import parity
from graphprune.exporters.checks.validation import Reference
from graphprune.exporters.contract import NO_OPTIONS, ExportOptions, ExportReport, ExportTarget, Needs
from graphprune.exporters.export_folders.onnx_writer import graph_of, subject_of
from graphprune.exporters.export_folders.package_formats import Format, export_as, import_package, verify
from graphprune.exporters.onnx_tools.onnx_files import save_onnx
from graphprune.exporters.onnx_tools.onnx_quantize import BITS, least_opset, quantize
from graphprune.exporters.subjects.subject import Subject

FILE = "model.xml"


def export(source: Path, output: Path, options: ExportOptions = NO_OPTIONS, *, force: bool = False) -> ExportReport:
    """Export the model of a Hugging Face folder as model.xml and model.bin.

    A decoder has its cache as inputs and outputs. ``fp16`` is the precision of stored matrices; the device chooses the
    precision of computations.

    Raises:
        PackageError: if OpenVINO is missing or broken.
        ExportError: if the model cannot be exported, the file does not agree with it, or `output` may not be written.
    """
    options.require("openvino", dtype=("fp32", "fp16"), quant=tuple(BITS), static=("batch", "sequence", "past"))
    import_package("openvino", "openvino")
    return export_as(FORMAT, source, output, options, force=force)


@dataclass(frozen=True)
class OpenvinoRunner:
    """Model compiled for the CPU."""

    request: Any
    input_types: Mapping[str, np.dtype[Any]]

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name."""
        arrays = {
            name: np.ascontiguousarray(feeds[name].numpy().astype(kind)) for name, kind in self.input_types.items()
        }
        try:
            values = self.request.infer(arrays)
        except RuntimeError as fault:
            raise ExportError(f"OpenVINO failed on CPU{because(fault)}") from fault
        return {port.get_any_name(): torch.from_numpy(np.array(array)) for port, array in values.items()}


def _open(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> OpenvinoRunner:
    """Load the file for computation in float32: further rounding of a device is no fault of the file."""
    core = import_package("openvino", "openvino").Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    try:
        compiled = core.compile_model(str(path), "CPU", hints)
    except RuntimeError as fault:
        raise ExportError(f"OpenVINO cannot open {path.name} on CPU{because(fault)}; export it again") from fault
    input_types = {port.get_any_name(): np.dtype(port.get_element_type().to_dtype()) for port in compiled.inputs}
    return OpenvinoRunner(compiled.create_infer_request(), input_types)


def _reference(source: Path, options: ExportOptions) -> Reference:
    """Model in float32, with its matrices rounded if they are stored in half precision."""
    subject = subject_of(source, replace(options, dtype=None))
    if options.dtype != "fp16":
        return Reference(subject, parity.FLOAT32)
    with torch.no_grad():
        for name, parameter in subject.module.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(_rounded(name, parameter))
    return Reference(subject, parity.FLOAT16)  # a product of two matrices may be rounded once more


def _rounded(name: str, tensor: Tensor) -> Tensor:
    rounded = tensor.half()
    if not bool(torch.isfinite(rounded).all()):
        raise ExportError(f"{name} has values beyond what half precision holds; use --dtype fp32")
    return rounded


def _write(subject: Subject, folder: Path, options: ExportOptions) -> dict[str, Any]:
    start = time.perf_counter()
    openvino: Any = import_package("openvino", "openvino")
    graph = graph_of(subject, None, least_opset(options.quant, standard=True))
    if options.quant != "none":
        graph = quantize(graph, options.quant, standard=True)
    with TemporaryDirectory(dir=folder, prefix=".onnx-") as temporary:
        path = save_onnx(graph, Path(temporary))
        exported = time.perf_counter() - start
        try:
            model = openvino.Core().read_model(str(path))
        except RuntimeError as fault:
            raise ExportError(f"OpenVINO cannot read the ONNX file{because(fault)}") from fault
        if options.dtype == "fp16":
            _halve(openvino, model)
        openvino.save_model(model, str(folder / FILE), compress_to_fp16=False)
        kinds = Counter(node.get_type_name() for node in model.get_ops())
        del model  # it maps the ONNX file, which is removed now
    return {"operators": dict(sorted(kinds.items())), "onnx_seconds": exported}


def _halve(openvino: Any, model: Any) -> None:
    """Store matrices in half precision.

    OpenVINO's own compression also rounds the frequencies of rotary embeddings, whose error grows with the position.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != openvino.Type.f32:
            continue
        if sum(size > 1 for size in node.get_output_shape(0)) < 2:
            continue
        readers = list(node.output(0).get_target_inputs())
        half = openvino.opset13.constant(node.data.astype(np.float16), name=f"{node.get_friendly_name()}_half")
        whole = openvino.opset13.convert(half, "f32")
        for reader in readers:
            reader.replace_source_output(whole.output(0))


FORMAT = Format("openvino", FILE, ("openvino",), _reference, _write, _open)

TARGET = ExportTarget(
    export,
    Needs(
        ("per-layer", "stock", "free"), 32, 16, "OpenVINO runs any width; its blocks of weights hold 32, of channels 16"
    ),
    partial(verify, FORMAT),
)
