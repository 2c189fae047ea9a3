"""Read an ONNX file into a graph without functions, and refuse what no run could follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graphprune.errors import LoadError, because
from graphprune.support.packages import load, onnx
from graphprune.support.packages import onnx_ir as ir

OLDEST = 11  # opset; files of older ones are converted
OWN_INPUTS = 4  # IR version since which a constant that is also an input may be replaced by the caller


def read(file: Path) -> ir.Model:
    """Graph of a file, with its functions inlined; external data stay in their files.

    Raises:
        LoadError: if it is missing, truncated, incomplete, or has constants that are inputs.
    """
    if not file.is_file():
        raise LoadError(f"{file} does not exist, expected an ONNX file")
    model = _parsed(file)
    if not model.graph.outputs:
        raise LoadError(f"{file} ({file.stat().st_size} bytes) holds no graph with outputs; copy or export it again")
    _require_tensors(file, model)
    _require_external_data(file, model, follow_links(file, model))
    _require_fixed_constants(file, model)
    if model.functions:
        load("onnx_ir.passes.common").InlinePass()(model)
    _require_origins(file, model)
    model.graph.sort()
    return model


def _require_tensors(file: Path, model: ir.Model) -> None:
    """Check that inputs and outputs are tensors of numbers, where their types are known.

    Raises:
        LoadError: if one is a sequence, a map or holds strings, as the probabilities by class of some converters.
    """
    for kind, values in (("input", model.graph.inputs), ("output", model.graph.outputs)):
        for value in values:
            if value.type is None or (isinstance(value.type, ir.TensorType) and value.dtype != ir.DataType.STRING):
                continue
            raise _no_tensor(file, kind, str(value.name), f"{value.type}")


def _no_tensor(file: Path, kind: str, name: str, what: str) -> LoadError:
    other = ", or convert the model without it (skl2onnx: options={'zipmap': False}, and classes that are integers)"
    return LoadError(
        f"{file}: {kind} {name} is of type {what}, expected a tensor of numbers; remove it from the graph"
        + other * (kind == "output")
    )


def _require_no_maps(file: Path) -> None:
    """Check that inputs and outputs of a file, of which onnx_ir knows no maps, are tensors.

    Raises:
        LoadError: if one is not.
    """
    try:
        graph = onnx.load(str(file), load_external_data=False).graph
    except Exception:  # the file is damaged
        return
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            what = value.type.WhichOneof("value")
            if what not in (None, "tensor_type"):
                raise _no_tensor(file, kind, value.name, what.removesuffix("_type"))


def _require_origins(file: Path, model: ir.Model) -> None:
    """Check that each value is an input, a constant, or computed by a node of the file.

    Raises:
        LoadError: if one has no origin, as one of a sparse constant, which is not read.
    """
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if value is not None and not (value.is_graph_input() or value.is_initializer() or value.producer()):
                raise LoadError(
                    f"{file}: node {node.name or node.outputs[0].name!r} ({node.op_type}) reads {value.name}, which is "
                    "no input, constant or result of a node; sparse constants are not read: store it as a dense one"
                )


def _parsed(file: Path) -> ir.Model:
    try:
        model = ir.load(file)
        opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", OLDEST))
        if opset < OLDEST:
            model = ir.from_proto(onnx.version_converter.convert_version(onnx.load(str(file)), 13))
        return model
    except Exception as fault:  # protobuf, onnx_ir and the converter raise errors of many types
        _require_no_maps(file)
        cause: BaseException = fault
        while (inner := cause.__cause__ or cause.__context__) is not None:
            cause = inner
        raise LoadError(
            f"{file} ({file.stat().st_size} bytes) is truncated, damaged or no ONNX model{because(cause)}; copy or "
            "export it again"
        ) from fault


def _require_external_data(file: Path, model: ir.Model, folder: Path) -> None:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            raise LoadError(f"{file}: the constant {name} has no numbers; export the model again")
        if not isinstance(tensor, ir.ExternalTensor):
            _require_numbers(file, str(name), tensor)
            continue
        path = Path(tensor.path)
        end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
        if not path.is_file() or path.stat().st_size < end:
            state = f"has {path.stat().st_size} bytes" if path.is_file() else "does not exist"
            raise LoadError(
                f"{file}: the numbers of {name} end at byte {end} of {path}, which {state}; copy the model with "
                "all its files of external data"
            )
        if not path.resolve().is_relative_to(folder.resolve()):
            raise LoadError(f"{file}: the numbers of {name} are in {path}, outside of the folder of the model")


def follow_links(file: Path, model: ir.Model) -> Path:
    """Let external data be read from the files that links stand for; return the folder of the data.

    In the cache of the hub, the file and its data are links to files in one folder; other links are not followed.
    """
    folder = file.parent
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).is_symlink():
            real = Path(tensor.path).resolve()
            if real.parent == file.resolve().parent:
                folder = real.parent
                value.const_value = ir.ExternalTensor(
                    real.name, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=str(tensor.name),
                    base_dir=folder,
                )  # fmt: skip
    return folder


def _require_numbers(file: Path, name: str, tensor: ir.TensorProtocol) -> None:
    try:
        tensor.numpy()
    except (ValueError, TypeError) as fault:
        raise LoadError(
            f"{file}: the constant {name} of shape {list(tensor.shape)} holds another number of values"
            f"{because(fault)}; export the model again"
        ) from fault


def _require_fixed_constants(file: Path, model: ir.Model) -> None:
    overridable = [value.name for value in model.graph.inputs if value.name in model.graph.initializers]
    if overridable and model.ir_version >= OWN_INPUTS:
        raise LoadError(
            f"{file}: {len(overridable)} constants are inputs, too, the first {overridable[0]}: a caller may replace "
            "their numbers, so that none of them can be cut; remove them from the inputs of the graph "
            "(onnxruntime.tools.remove_initializer_from_input)"
        )


def shape_of(file: Path, value: Any) -> list[int | str]:
    """Sizes of an input: numbers, and names for dynamic ones.

    Raises:
        LoadError: if its shape is unknown.
    """
    if value.shape is None:
        raise LoadError(
            f"{file}: input {value.name} has no shape, expected sizes, or names for dynamic ones; export it with them"
        )
    sizes = []
    for dim, size in enumerate(value.shape):
        known = size if isinstance(size, int) else size.value
        sizes.append(known if known is not None else f"{value.name}_{dim}")
    return sizes
