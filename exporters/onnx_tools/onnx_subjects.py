"""Exported ONNX files as subjects of further exports, for graphs that no class of transformers runs."""

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

FREE = "onnx"  # where a folder of destination free has its ONNX files

# Every free size of an example differs from every other; the total is that of the cache and of what follows it.
_SIZES = {SEQUENCE: 3, CACHED: 4, TOTAL: 7}
_OTHER = 2


class OnnxModule(nn.Module):
    """A model file, called with its inputs in order; its parameters are the numbers in the file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.runner = path, open_model(path)
        weights = ir.load(path).graph.initializers
        for name, value in weights.items():
            tensor = value.const_value
            if tensor is not None and tensor.dtype.is_floating_point() and len(tensor.shape):
                self._parameters[name] = nn.Parameter(torch.from_numpy(tensor.numpy().copy()), requires_grad=False)

    def forward(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        """The outputs, in their order."""
        return tuple(self.runner.run(dict(zip(self.runner.inputs, inputs, strict=True))).values())

    def graph(self, sizes: Mapping[str, int], opset: int | None) -> ir.Model:
        """The graph in the file, its free dimensions of these sizes and with operators of that opset.

        Raises:
            ExportError: if an operator cannot be said in that opset.
        """
        model = onnx.load(str(self.path))
        for name, size in sizes.items():
            load("onnxruntime.tools.onnx_model_utils").make_dim_param_fixed(model.graph, name, size)
        if opset is not None and opset != model.opset_import[0].version:
            try:
                model = onnx.version_converter.convert_version(model, opset)
            except Exception as fault:  # its errors share no base class
                raise ExportError(
                    f"{self.path} cannot be said in opset {opset}{because(fault)}; leave --opset out"
                ) from fault
        return ir.from_proto(model)


def stored_graph(subject: Subject, opset: int | None) -> ir.Model:
    """The graph of a stored subject, of the sizes of its example where none stays free.

    Raises:
        ExportError: as `Stored.graph`.
    """
    assert isinstance(subject.module, OnnxModule)
    shapes = {name: value.shape for name, value in subject.module.runner.inputs.items()}
    pairs = ((word, leaf.shape[dim]) for n, leaf in subject.example().items() for dim, word in enumerate(shapes[n]))
    fixed = {word: size for word, size in pairs if isinstance(word, str)} if subject.dynamic is None else {}
    return subject.module.graph(fixed, opset)


def is_stored(source: Path) -> bool:
    """Does a folder hold an ONNX file as its model?"""
    return (source / MODEL).is_file()


def input_names(file: Path) -> list[str]:
    """What a model file takes, without reading its weights."""
    return [value.name for value in onnx.load(str(file), load_external_data=False).graph.input]


def stored_subject(source: Path, options: ExportOptions) -> Subject:
    """The model of an exported folder.

    Raises:
        ExportError: if it cannot be opened, or is asked for in another precision.
    """
    if options.dtype not in (None, "fp32"):
        raise ExportError(
            f"{source} holds a graph in float32, which cannot be made {options.dtype} as a model of transformers can; "
            "use --dtype fp32, or prune with destination stock or per-layer"
        )
    module = OnnxModule(source / MODEL)
    takes = module.runner.inputs
    examples = [_example(name, value) for name, value in takes.items()]
    free = [{dim: n for dim, n in enumerate(value.shape) if isinstance(n, str)} for value in takes.values()]
    outputs = {value.name: value.shape for value in module.runner.session.get_outputs()}
    last = next(iter(outputs.values()))[-1]
    return Subject(
        module, (examples,), tuple(takes), tuple(outputs), (free,), last if isinstance(last, int) else 0
    )  # fmt: skip


def _example(name: str, value: Any) -> Tensor:
    shape = [size if isinstance(size, int) else _SIZES.get(size, _OTHER) for size in value.shape]
    kind = tensor_type(value)
    return torch.ones(shape, dtype=kind) if name == "attention_mask" else torch.zeros(shape, dtype=kind)
