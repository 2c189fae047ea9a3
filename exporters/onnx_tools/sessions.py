"""ONNX Runtime sessions on the requested provider, without fallback, with tensors by name."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphprune.errors import ExportError, because
from graphprune.support.packages import onnx, onnxruntime
from graphprune.support.packages import onnx_ir as ir

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_ERRORS_ONLY = 3
_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
    "tensor(double)": torch.float64,
    "tensor(uint8)": torch.uint8,
    "tensor(int8)": torch.int8,
}


def tensor_type(value: Any) -> torch.dtype:
    """The type of an input or output of a session."""
    return _TYPES[value.type]


@dataclass
class OnnxRunner:
    """A model file in ONNX Runtime; `provider` is the one that the session reports."""

    session: Any
    provider: str
    seconds: float  # to open it

    @property
    def inputs(self) -> dict[str, Any]:
        """Inputs by name; their `shape` has names for dynamic sizes."""
        return {value.name: value for value in self.session.get_inputs()}

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name; inputs are cast to the types of the model."""
        inputs = self.inputs
        arrays = {name: tensor.to(_TYPES[inputs[name].type]).contiguous().numpy() for name, tensor in feeds.items()}
        names = [value.name for value in self.session.get_outputs()]
        try:
            outputs = self.session.run(names, arrays)
        except Exception as fault:  # its errors share no base class
            raise ExportError(f"ONNX Runtime failed on {self.provider}{because(fault)}") from fault
        return {name: torch.from_numpy(np.asarray(array)) for name, array in zip(names, outputs, strict=True)}


def open_model(path: Path, provider: str = CPU) -> OnnxRunner:
    """Open a model file on a provider.

    Raises:
        ExportError: if it cannot be opened, or the session falls back to another provider.
    """
    return _opened(str(path), path.name, provider, {})


def open_in_floats(path: Path) -> OnnxRunner:
    """Open a model file on the CPU with floating-point activations, even if its quantized products allow 8 bits.

    Weights behind DequantizeLinear are dequantized.

    Raises:
        ExportError: if it cannot be opened.
    """
    model = onnx.load(str(path), load_external_data=False)
    for attribute in (attribute for node in model.graph.node for attribute in node.attribute):
        if attribute.name == "accuracy_level":
            attribute.i = 0
    settings = {
        "session.model_external_initializers_file_folder_path": str(path.parent), "session.disable_quant_qdq": "1"
    }  # fmt: skip
    return _opened(model.SerializeToString(), path.name, CPU, settings)


def open_graph(model: ir.Model, file: Path) -> OnnxRunner:
    """Open a changed graph of a file on the CPU; external data are next to the file.

    Raises:
        ExportError: if it cannot be opened.
    """
    settings = {"session.model_external_initializers_file_folder_path": str(file.parent)}
    return _opened(ir.serde.serialize_model(model).SerializeToString(), file.name, CPU, settings)


def _opened(model: str | bytes, name: str, provider: str, settings: Mapping[str, str]) -> OnnxRunner:
    options = onnxruntime.SessionOptions()
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = _ERRORS_ONLY
    start = time.perf_counter()
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[provider])
    except Exception as fault:  # its errors share no base class
        raise ExportError(f"ONNX Runtime cannot open {name} on {provider}{because(fault)}") from fault
    actual = session.get_providers()[0]
    if actual != provider:
        raise ExportError(f"ONNX Runtime fell back from {provider} to {actual}; check the driver and its libraries")
    return OnnxRunner(session, actual, time.perf_counter() - start)


def has_cuda(path: Path) -> bool:
    """Whether a session can run this model on CUDA; the list of available providers is not sufficient for that."""
    if CUDA not in onnxruntime.get_available_providers() or (not torch.cuda.is_available() and not _driver()):
        return False
    try:
        open_model(path, CUDA)
    except ExportError:
        return False
    return True


def _driver() -> bool:
    return Path("/dev/nvidia0").exists() or Path("/dev/dxg").exists()
