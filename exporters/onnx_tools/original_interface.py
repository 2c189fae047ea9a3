"""Interface of an ONNX file for the model that was pruned from it: names, dynamic sizes, metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphprune.errors import ExportError, because
from graphprune.support.packages import onnx_ir as ir

WRAPPER = "module."  # start of the names of weights in a module that takes its inputs by position
INPUT, OUTPUT = "input__", "output__"
Shape = tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class OriginalInterface:
    """Inputs and outputs of a file with their sizes, in its order, and what describes it."""

    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    opset: int
    description: Mapping[str, Any]
    properties: Mapping[str, str]

    @classmethod
    def of(cls, file: Path) -> OriginalInterface:
        """Interface of a file, whose weights are not read.

        Raises:
            ExportError: if it is missing or damaged.
        """
        try:
            model = ir.load(file)
        except Exception as fault:  # protobuf and onnx_ir raise errors of many types
            raise ExportError(
                f"{file}, from which the program was loaded, cannot be read{because(fault)}; restore it, and save again"
            ) from fault
        graph = model.graph
        fields = ("producer_name", "producer_version", "domain", "model_version", "doc_string")
        return cls(
            {str(value.name): _shape(value) for value in graph.inputs if value.name not in graph.initializers},
            {str(value.name): _shape(value) for value in graph.outputs},
            model.opset_imports.get("", 0),
            {name: getattr(model, name) for name in fields},
            dict(model.metadata_props),
        )

    @property
    def neutral(self) -> tuple[list[str], list[str]]:
        """Names of inputs and outputs for the export, which are none of its own: those of the file may be."""
        return [f"{INPUT}{i}" for i in range(len(self.inputs))], [f"{OUTPUT}{i}" for i in range(len(self.outputs))]

    def restore(self, model: ir.Model, weights: Mapping[str, str]) -> None:
        """Give an exported model the names, the description and the metadata of the file.

        `weights` has the names in the file of weights that have others in the program.
        """
        sizes = dict[str, str]()
        for value, shape in zip(model.graph.inputs, self.inputs.values(), strict=True):
            for new, old in zip(value.shape or (), shape or (), strict=False):
                if not isinstance(new, int) and isinstance(old, str) and new.value is not None:
                    sizes.setdefault(new.value, old)
        for value in (*model.graph.inputs, *(out for node in model.graph.all_nodes() for out in node.outputs)):
            value.shape = _renamed(value.shape, sizes)
        for value, shape in zip(model.graph.outputs, self.outputs.values(), strict=True):
            value.shape = _restored(value.shape, shape)
        self._name(model, weights)
        for name, text in self.description.items():
            setattr(model, name, text)
        model.graph.doc_string = None
        model.metadata_props.clear()
        model.metadata_props.update(self.properties)

    def _name(self, model: ir.Model, names: Mapping[str, str]) -> None:
        """Give inputs, outputs and weights their names in the file; a computed value of such a name gets another."""
        graph = model.graph
        own = {name: name.removeprefix(WRAPPER) for name in graph.initializers if name.startswith(WRAPPER)}
        weights = {old: names.get(name, name) for old, name in own.items()}
        taken = {*weights.values(), *self.inputs, *self.outputs}
        for value in (out for node in graph.all_nodes() for out in node.outputs):
            if value.name in taken and not value.is_graph_output():
                value.name = f"{value.name}__computed"
        for old in [old for old in graph.initializers if old in taken]:
            weights.setdefault(old, f"{old}__constant")
        renamed = {new: graph.initializers.pop(old) for old, new in weights.items()}
        for new, value in renamed.items():
            value.name = new
            graph.initializers[new] = value
        for value, name in zip(graph.inputs, self.inputs, strict=True):
            value.name = name
        inputs = dict(zip(self.inputs, graph.inputs, strict=True))
        for i, (value, name) in enumerate(zip(list(graph.outputs), self.outputs, strict=True)):
            if name in inputs:  # an input that is returned as it is
                graph.outputs[i] = inputs[name]
            value.name = name if name not in inputs else f"{name}__returned"


def _shape(value: ir.Value) -> Shape:
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else size.value for size in value.shape)


def _renamed(shape: ir.Shape | None, names: Mapping[str, str]) -> ir.Shape | None:
    if shape is None:
        return None
    return ir.Shape([size if isinstance(size, int) else names.get(size.value or "", size.value) for size in shape])


def _restored(new: ir.Shape | None, old: Shape) -> ir.Shape | None:
    """Sizes of an output: names of the file where a size is dynamic, numbers elsewhere."""
    if new is None or old is None or len(new) != len(old):
        return new
    return ir.Shape([size if isinstance(size, int) else name if name is not None else size.value
                     for size, name in zip(new, old, strict=True)])  # fmt: skip
