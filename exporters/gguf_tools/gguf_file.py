"""Writing of GGUF files, and comparison of every stored value with the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import ExportError, because
from graphprune.exporters.contract import ExportOptions
from graphprune.exporters.gguf_tools.gguf_model import GgufModel
from graphprune.support.packages import gguf

TensorType = gguf.GGMLQuantizationType

MODEL = "model.gguf"
_BLOCK = 32  # weights that share a scale
_QUANTIZED = {"int8": TensorType.Q8_0, "int4": TensorType.Q4_0}
_HALF_STEP = 2.0**-25  # half the distance of two subnormal numbers in half precision
_FILE_TYPES = {
    TensorType.F32: gguf.LlamaFileType.ALL_F32, TensorType.F16: gguf.LlamaFileType.MOSTLY_F16,
    TensorType.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0, TensorType.Q4_0: gguf.LlamaFileType.MOSTLY_Q4_0,
}  # fmt: skip


def stored_as(name: str, shape: tuple[int, ...], options: ExportOptions) -> TensorType:
    """The type of a weight: vectors are in float32, matrices as requested if their rows are whole blocks.

    With 4 bits, the embeddings and the head have 8.
    """
    if len(shape) < 2:
        return TensorType.F32
    dtype = options.dtype or ("fp32" if options.quant == "none" else "fp16")
    plain = TensorType.F16 if dtype == "fp16" else TensorType.F32
    if options.quant == "none" or shape[-1] % _BLOCK:
        return plain
    return TensorType.Q8_0 if name.split(".")[0] in ("token_embd", "output") else _QUANTIZED[options.quant]


def is_quantized(name: str, shape: tuple[int, ...], options: ExportOptions) -> bool:
    """Whether a weight is stored in quantized blocks."""
    return stored_as(name, shape, options) in (TensorType.Q8_0, TensorType.Q4_0)


def write(path: Path, model: GgufModel, fields: Mapping[str, Any], options: ExportOptions) -> None:
    """Write the fields of `model`, further `fields`, and all weights."""
    kinds = {name: stored_as(name, tuple(tensor.shape), options) for name, tensor in model.tensors.items()}
    writer = gguf.GGUFWriter(str(path), model.architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(_FILE_TYPES[max(set(kinds.values()), key=list(kinds.values()).count)])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in {**model.fields, **fields}.items():
        _add(writer, key, value)
    for name, tensor in model.tensors.items():
        with np.errstate(over="ignore"):  # `check` reports numbers too large for half precision
            array = gguf.quants.quantize(np.ascontiguousarray(tensor.numpy()), kinds[name])
        writer.add_tensor(name, array, raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def read(path: Path) -> Any:
    """The reader of a file.

    Raises:
        ExportError: if it is damaged.
    """
    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as fault:
        raise ExportError(f"{path.name} is not a complete GGUF file{because(fault)}; export it again") from fault


def check(path: Path, model: GgufModel, fields: Mapping[str, Any], options: ExportOptions) -> dict[str, Any]:
    """Compare all of a file with the model; return the largest error of a weight and the number of weights by type.

    Errors are relative to the largest number of the same weight.

    Raises:
        ExportError: if a value, a name, a shape or a type differs, or a weight by more than its type explains.
    """
    reader = read(path)
    fields_read = {key: entry.contents() for key, entry in reader.fields.items()}
    expected = {gguf.Keys.General.ARCHITECTURE: model.architecture, **model.fields, **fields}
    for key, value in expected.items():
        _require_equal(path, key, fields_read.get(key), value)
    names = sorted(tensor.name for tensor in reader.tensors)
    _require_equal(path, "its list of weights", names, sorted(model.tensors))
    errors: dict[str, float] = {}
    for entry in reader.tensors:
        tensor = model.tensors[entry.name]
        kind = stored_as(entry.name, tuple(tensor.shape), options)
        _require_equal(path, f"the type of {entry.name}", TensorType(entry.tensor_type).name, kind.name)
        _require_equal(path, f"the shape of {entry.name}", [int(n) for n in reversed(entry.shape)], list(tensor.shape))
        worst = _relative_error(path, entry, tensor.numpy())
        errors[kind.name] = max(errors.get(kind.name, 0.0), worst)
    return {"error": errors, "types": dict(Counter(TensorType(entry.tensor_type).name for entry in reader.tensors))}


def _require_equal(path: Path, label: str, actual: Any, expected: Any) -> None:
    if isinstance(expected, float):
        expected = float(np.float32(expected))
    if isinstance(expected, list) and expected and isinstance(expected[0], float):
        expected = [float(np.float32(each)) for each in expected]
    if actual == expected:
        return
    stored, of_model = (str(side) if len(str(side)) < 99 else f"{str(side)[:99]}..." for side in (actual, expected))
    raise ExportError(f"{path.name}: {label} is {stored}, the model has {of_model}; nothing was exported")


def _relative_error(path: Path, entry: Any, expected: NDArray[np.float32]) -> float:
    stored = gguf.quants.dequantize(entry.data, entry.tensor_type).reshape(expected.shape)
    error = np.abs(stored - expected)
    if not bool((error <= _rounding_bound(expected, TensorType(entry.tensor_type))).all()):
        raise ExportError(
            f"{path.name}: {entry.name} differs from the model by {float(error.max()):.1e}, more than "
            f"{TensorType(entry.tensor_type).name} explains; its numbers are too large for it, or not finite. "
            "Use --dtype fp32"
        )
    largest = float(np.abs(expected).max(initial=0.0))
    return float(error.max(initial=0.0)) / largest if largest else 0.0


def _rounding_bound(expected: NDArray[np.float32], kind: TensorType) -> NDArray[np.float32]:
    """Largest change of each number by rounding to a type."""
    if kind is TensorType.F32:
        return np.zeros_like(expected)
    if kind is TensorType.F16:
        return np.abs(expected) * np.float32(2.0**-11) + np.float32(_HALF_STEP)
    # with 4 bits one sign has 8 steps, the other 7
    steps, max_steps = (127, 0.5) if kind is TensorType.Q8_0 else (8, 1.0)
    step = np.abs(expected.reshape(-1, _BLOCK)).max(1, keepdims=True) / steps
    # the scale is stored in half precision
    bound = max_steps * step + steps * (step * 2.0**-11 + _HALF_STEP) + 1e-6 * step
    return np.broadcast_to(bound, (len(bound), _BLOCK)).reshape(expected.shape).astype(np.float32)


def count_finite(path: Path) -> int:
    """Count the weights in a file, all of which must be finite.

    Raises:
        ExportError: if it is damaged, or some weights are NaN or infinite.
    """
    count = 0
    for entry in read(path).tensors:
        if not np.isfinite(gguf.quants.dequantize(entry.data, entry.tensor_type)).all():
            raise ExportError(f"{path.name}: {entry.name} has NaN or infinity; export it again")
        count += int(entry.n_elements)
    return count
