"""The file itself in ONNX Runtime, with which its translation is compared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphprune.errors import LoadError, because
from graphprune.frontends.onnx_import.onnx_values import to_tensor
from graphprune.support.packages import onnxruntime

_FOLDER = "session.model_external_initializers_file_folder_path"
_TYPES = {
    "tensor(float)": torch.float32, "tensor(double)": torch.float64, "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64, "tensor(int32)": torch.int32, "tensor(bool)": torch.bool,
    "tensor(uint8)": torch.uint8, "tensor(int8)": torch.int8, "tensor(int16)": torch.int16,
}  # fmt: skip


class ReferenceSession:
    """A model in ONNX Runtime on the CPU; the folder holds its external data."""

    def __init__(self, file: Path, model: bytes | None = None, folder: Path | None = None) -> None:
        self.file = file
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        if model is not None:
            options.add_session_config_entry(_FOLDER, str(folder or file.parent))
        try:
            self.session: Any = onnxruntime.InferenceSession(
                model if model is not None else str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as fault:  # its errors share no base class
            raise LoadError(f"ONNX Runtime refuses {file}{because(fault)}; correct or export it again") from fault

    @property
    def types(self) -> dict[str, torch.dtype]:
        """Types of the inputs by name.

        Raises:
            LoadError: if an input or output is no tensor of a type that torch has.
        """
        for kind, values in (("input", self.session.get_inputs()), ("output", self.session.get_outputs())):
            for value in values:
                if value.type not in _TYPES:
                    raise LoadError(
                        f"{self.file}: {kind} {value.name} is a {value.type}, expected one of {', '.join(_TYPES)}; "
                        "remove it from the graph, or divide the graph before it"
                    )
        return {value.name: _TYPES[value.type] for value in self.session.get_inputs()}

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name; errors of ONNX Runtime are raised as they are."""
        names = [value.name for value in self.session.get_outputs()]
        arrays = {name: tensor.detach().contiguous().numpy() for name, tensor in feeds.items()}
        outputs = self.session.run(names, arrays)
        return {name: to_tensor(np.asarray(array)) for name, array in zip(names, outputs, strict=True)}
