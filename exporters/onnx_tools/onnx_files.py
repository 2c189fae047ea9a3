"""ONNX files of standard operators: export, writing, checking and facts for the report."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from graphprune.errors import ExportError, because
from graphprune.execution.module_state import quiet_exporters
from graphprune.exporters.onnx_tools.expert_products import translations
from graphprune.exporters.onnx_tools.rotary_batch import repeat_tables
from graphprune.exporters.subjects.subject import Subject
from graphprune.support.packages import load, onnx
from graphprune.support.packages import onnx_ir as ir

OPSET = 23  # the first opset with Attention, RMSNormalization and RotaryEmbedding; supported by every runtime
OPSETS = range(18, 25)
MODEL = "model.onnx"
SINGLE_FILE_BYTES = 100_000_000  # bytes of weights that stay inside model.onnx


def to_onnx(subject: Subject, opset: int = OPSET) -> Any:
    """The subject as a `torch.onnx.ONNXProgram` with named inputs, outputs and dynamic dimensions.

    Raises:
        ExportError: if torch.onnx cannot export it.
    """
    load("onnxscript")
    try:
        with torch.no_grad(), quiet_exporters():
            program = torch.onnx.export(
                subject.module, subject.args, dynamo=True, opset_version=opset, verbose=False,
                input_names=list(subject.inputs), output_names=list(subject.outputs), dynamic_shapes=subject.dynamic,
                custom_translation_table=dict(translations()),
            )  # fmt: skip
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as fault:
        raise ExportError(
            f"torch.onnx cannot export {type(subject.module).__name__}{because(_root_cause(fault))}"
        ) from fault
    assert program is not None
    _require_names(subject, program)
    repeat_tables(program.model)
    return program


def save_onnx(model: ir.Model, folder: Path, name: str = MODEL) -> Path:
    """Write an ONNX file, with an additional ``.data`` file for large weights; external tensors remain where they are.

    Raises:
        ExportError: if the file does not pass the onnx checker.
    """
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces: a third of a small file, and paths of this machine
    stored = [value.const_value for value in model.graph.initializers.values()]
    inside = [tensor for tensor in stored if tensor is not None and not isinstance(tensor, ir.ExternalTensor)]
    large = sum(tensor.nbytes for tensor in inside) > SINGLE_FILE_BYTES
    path = folder / name
    ir.save(model, path, external_data=f"{name}.data" if large else None)
    check(path)
    return path


def model_file(folder: Path) -> Path | None:
    """The ONNX file of an exported folder: model.onnx, or the one in ``onnx/``, as web exports have; None without."""
    if (folder / MODEL).is_file():
        return folder / MODEL
    return next(iter(sorted((folder / "onnx").glob("model*.onnx"))), None)


def stored_bytes(path: Path) -> int:
    """Size in bytes of an ONNX file and of its external data files."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def check(path: Path) -> None:
    """Run the onnx checker on a file.

    Raises:
        ExportError: if the check fails, or this is not an ONNX file.
    """
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, OSError, ValueError) as fault:
        raise ExportError(f"{path.name} is not a valid ONNX model{because(fault)}; export it again") from fault
    except Exception as fault:
        if type(fault).__module__.startswith("google.protobuf"):
            raise ExportError(f"{path.name} is not an ONNX file{because(fault)}; export it again") from fault
        raise


def facts(path: Path, subject: Subject, quant: str = "none") -> dict[str, Any]:
    """Facts about a file for the report: opsets, operators by domain, parameters and bytes.

    Raises:
        ExportError: if weights have another shape than in the module, or were written twice.
    """
    model = onnx.load(str(path), load_external_data=False)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for name, shape in subject.shapes().items():
        if sorted(shapes.get(name, shape)) != sorted(shape):
            raise ExportError(f"{path.name} has {name} with shape {shapes[name]}, the pruned model has {shape}")
    size = stored_bytes(path)
    weights = sum(p.numel() * p.element_size() for p in subject.module.parameters())
    if size > (1.2 if quant == "none" else 1.0) * weights + 2_000_000:
        raise ExportError(f"{path.name} has {size} bytes for {weights} bytes of weights: some were written twice")
    return {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "operators": operators(model),
        "sizes": {value.name: sizes(value) for value in (*model.graph.input, *model.graph.output)},
        "parameters": sum(p.numel() for p in subject.module.parameters()),
        "stored_numbers": sum(_count(tensor) for tensor in model.graph.initializer),
        "bytes": size,
    }


def sizes(value: onnx.ValueInfoProto) -> list[int | str]:
    """The shape of an input or output: numbers, and names for dynamic dimensions."""
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def operators(model: onnx.ModelProto) -> dict[str, dict[str, int]]:
    """Number of nodes of each operator, by domain."""
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    counts: dict[str, Counter[str]] = {}
    for node in nodes:
        counts.setdefault(node.domain or "ai.onnx", Counter())[node.op_type] += 1
    return {domain: dict(sorted(counts.items())) for domain, counts in sorted(counts.items())}


def _count(tensor: onnx.TensorProto) -> int:
    return torch.Size(tuple(tensor.dims)).numel()


def _require_names(subject: Subject, program: Any) -> None:
    graph = program.model.graph
    for kind, values, expected in (
        ("inputs", graph.inputs, subject.inputs),
        ("outputs", graph.outputs, subject.outputs),
    ):
        names = tuple(value.name for value in values)
        if names != expected:
            missing = next((name for name in expected if name not in names), names[-1])
            raise ExportError(f"the exported graph does not have the {kind} of the module: {missing!r} is missing")


def _root_cause(fault: BaseException) -> BaseException:
    """The innermost error in a chain of causes."""
    return fault if fault.__cause__ is None else _root_cause(fault.__cause__)
