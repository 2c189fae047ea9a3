"""Exported ONNX files as subjects of further exports, for graphs that no transformers class can run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import ExportError, because
from graphprune.exporters.contract import ExportOptions
from graphprune.exporters.onnx_tools.onnx_files import MODEL
from graphprune.exporters.onnx_tools.sessions import open_model, tensor_type
from graphprune.exporters.subjects.subject import CACHED, SEQUENCE, TOTAL, Subject
from graphprune.support.packages import load, onnx
from graphprune.support.packages import onnx_ir as ir

ONNX_FOLDER = "onnx"  # subfolder with the ONNX files of a saved graph

# All dynamic sizes of an example differ; the total length is that of the cache plus the sequence.
_SIZES = {SEQUENCE: 3, CACHED: 4, TOTAL: 7}
_OTHER = 2


class OnnxModule(nn.Module):
    """An ONNX file as a module, called with a list of its inputs in order; its parameters are the stored weights."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.runner = path, open_model(path)
        weights = ir.load(path).graph.initializers
        for name, value in weights.items():
            tensor = value.const_value
            if tensor is not None and tensor.dtype.is_floating_point() and len(tensor.shape):
                self._parameters[name] = nn.Parameter(torch.from_numpy(tensor.numpy().copy()), requires_grad=False)

    def forward(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        """Outputs, in the order of the file."""
        return tuple(self.runner.run(dict(zip(self.runner.inputs, inputs, strict=True))).values())

    def graph(self, sizes: Mapping[str, int], opset: int | None, least: int = 0) -> ir.Model:
        """The graph in the file, with these sizes for its dynamic dimensions, and with operators of that opset.

        Without an `opset`, it is that of the file, or `least` if that is newer.

        Raises:
            ExportError: if it cannot be converted to that opset.
        """
        model = onnx.load(str(self.path))
        for name, size in sizes.items():
            load("onnxruntime.tools.onnx_model_utils").make_dim_param_fixed(model.graph, name, size)
        own = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        opset = opset or max(own, least)
        if opset != own:
            try:
                model = onnx.version_converter.convert_version(model, opset)
            except Exception as fault:  # its errors share no base class
                raise ExportError(
                    f"{self.path} cannot be converted to opset {opset}{because(fault)}; omit --opset"
                ) from fault
        return ir.from_proto(model)


def stored_graph(subject: Subject, opset: int | None, least: int = 0) -> ir.Model:
    """The graph of a stored subject, with the sizes of its example if it is static, as `OnnxModule.graph` makes it.

    Raises:
        ExportError: if it cannot be converted to that opset.
    """
    assert isinstance(subject.module, OnnxModule)
    shapes = {name: value.shape for name, value in subject.module.runner.inputs.items()}
    pairs = ((name, leaf.shape[dim]) for n, leaf in subject.example().items() for dim, name in enumerate(shapes[n]))
    fixed = {name: size for name, size in pairs if isinstance(name, str)} if subject.dynamic is None else {}
    return subject.module.graph(fixed, opset, least)


def is_stored(source: Path) -> bool:
    """Whether the model of a folder is an ONNX file."""
    return (source / MODEL).is_file()


def input_names(file: Path) -> list[str]:
    """Names of the inputs of a model file, without reading its weights."""
    return [value.name for value in onnx.load(str(file), load_external_data=False).graph.input]


def stored_subject(source: Path, options: ExportOptions) -> Subject:
    """The model of an exported folder as a subject.

    Raises:
        ExportError: if it cannot be opened, or another precision is requested.
    """
    if options.dtype not in (None, "fp32"):
        raise ExportError(
            f"{source} holds a graph in float32, which cannot be cast to {options.dtype} as a transformers model can; "
            "use --dtype fp32, or prune with destination stock or per-layer"
        )
    module = OnnxModule(source / MODEL)
    inputs = module.runner.inputs
    examples = [_example(name, value) for name, value in inputs.items()]
    dynamic = [{dim: n for dim, n in enumerate(value.shape) if isinstance(n, str)} for value in inputs.values()]
    outputs = {value.name: value.shape for value in module.runner.session.get_outputs()}
    last = next(iter(outputs.values()))[-1]
    return Subject(
        module, (examples,), tuple(inputs), tuple(outputs), (dynamic,), last if isinstance(last, int) else 0
    )  # fmt: skip


def _example(name: str, value: Any) -> Tensor:
    shape = [size if isinstance(size, int) else _SIZES.get(size, _OTHER) for size in value.shape]
    kind = tensor_type(value)
    return torch.ones(shape, dtype=kind) if name == "attention_mask" else torch.zeros(shape, dtype=kind)
