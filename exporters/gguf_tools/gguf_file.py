"""GGUF files: written, and read back number by number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import ExportError, because
from graphprune.exporters.contract import ExportOptions
from graphprune.exporters.gguf_tools.gguf_model import Described
from graphprune.support.packages import gguf

Stored = gguf.GGMLQuantizationType

MODEL = "model.gguf"
_BLOCK = 32  # one scale for so many weights
_QUANTISED = {"int8": Stored.Q8_0, "int4": Stored.Q4_0}
_EVEN = 2.0**-25  # half of the smallest step of a number in half precision
_FILES = {
    Stored.F32: gguf.LlamaFileType.ALL_F32, Stored.F16: gguf.LlamaFileType.MOSTLY_F16,
    Stored.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0, Stored.Q4_0: gguf.LlamaFileType.MOSTLY_Q4_0,
}  # fmt: skip


def stored_as(name: str, shape: tuple[int, ...], options: ExportOptions) -> Stored:
    """The type of a weight: vectors in float32, matrices as asked for where whole blocks fit into a row.

    With 4 bits, the table of embeddings and the head keep 8.
    """
    if len(shape) < 2:
        return Stored.F32
    plain = Stored.F16 if (options.dtype or ("fp32" if options.quant == "none" else "fp16")) == "fp16" else Stored.F32
    if options.quant == "none" or shape[-1] % _BLOCK:
        return plain
    return Stored.Q8_0 if name.split(".")[0] in ("token_embd", "output") else _QUANTISED[options.quant]


def is_quantised(name: str, shape: tuple[int, ...], options: ExportOptions) -> bool:
    """Is a weight stored in blocks of fewer bits?"""
    return stored_as(name, shape, options) in (Stored.Q8_0, Stored.Q4_0)


def write(path: Path, described: Described, fields: Mapping[str, Any], options: ExportOptions) -> None:
    """Write the sizes of `described`, further `fields`, and all weights."""
    kinds = {name: stored_as(name, tuple(tensor.shape), options) for name, tensor in described.tensors.items()}
    writer = gguf.GGUFWriter(str(path), described.architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(_FILES[max(set(kinds.values()), key=list(kinds.values()).count)])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in {**described.fields, **fields}.items():
        _add(writer, key, value)
    for name, tensor in described.tensors.items():
        with np.errstate(over="ignore"):  # what is too large for half precision is told by the check
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
        raise ExportError(f"{path.name} is no whole GGUF file{because(fault)}; export it again") from fault


def check(path: Path, described: Described, fields: Mapping[str, Any], options: ExportOptions) -> dict[str, Any]:
    """What the file holds, all of it compared with what it must hold: by type the largest error of a weight.

    Errors are relative to the largest number of the same weight.

    Raises:
        ExportError: if a value, a name, a shape or a type differs, or a weight by more than its type explains.
    """
    reader = read(path)
    found = {key: entry.contents() for key, entry in reader.fields.items()}
    wanted = {gguf.Keys.General.ARCHITECTURE: described.architecture, **described.fields, **fields}
    for key, value in wanted.items():
        _same(path, key, found.get(key), value)
    names = sorted(tensor.name for tensor in reader.tensors)
    _same(path, "its list of weights", names, sorted(described.tensors))
    errors: dict[str, float] = {}
    for entry in reader.tensors:
        tensor = described.tensors[entry.name]
        kind = stored_as(entry.name, tuple(tensor.shape), options)
        _same(path, f"the type of {entry.name}", Stored(entry.tensor_type).name, kind.name)
        _same(path, f"the shape of {entry.name}", [int(n) for n in reversed(entry.shape)], list(tensor.shape))
        worst = _worst(path, entry, tensor.numpy())
        errors[kind.name] = max(errors.get(kind.name, 0.0), worst)
    return {"error": errors, "types": dict(Counter(Stored(entry.tensor_type).name for entry in reader.tensors))}


def _same(path: Path, what: str, found: Any, wanted: Any) -> None:
    if isinstance(wanted, float):
        wanted = float(np.float32(wanted))
    if isinstance(wanted, list) and wanted and isinstance(wanted[0], float):
        wanted = [float(np.float32(each)) for each in wanted]
    if found == wanted:
        return
    sides = (str(side) if len(str(side)) < 99 else f"{str(side)[:99]}..." for side in (found, wanted))
    told, asked = sides
    raise ExportError(f"{path.name}: {what} is {told}, the model has {asked}; nothing was exported")


def _worst(path: Path, entry: Any, wanted: NDArray[np.float32]) -> float:
    found = gguf.quants.dequantize(entry.data, entry.tensor_type).reshape(wanted.shape)
    error = np.abs(found - wanted)
    if not bool((error <= _allowed(wanted, Stored(entry.tensor_type))).all()):
        raise ExportError(
            f"{path.name}: {entry.name} differs from the model by {float(error.max()):.1e}, more than "
            f"{Stored(entry.tensor_type).name} explains; its numbers are too large for it, or not finite. Use --dtype "
            "fp32"
        )
    largest = float(np.abs(wanted).max(initial=0.0))
    return float(error.max(initial=0.0)) / largest if largest else 0.0


def _allowed(wanted: NDArray[np.float32], kind: Stored) -> NDArray[np.float32]:
    """The most by which rounding to a type changes each number."""
    if kind is Stored.F32:
        return np.zeros_like(wanted)
    if kind is Stored.F16:
        return np.abs(wanted) * np.float32(2.0**-11) + np.float32(_EVEN)
    steps, most = (127, 0.5) if kind is Stored.Q8_0 else (8, 1.0)  # in 4 bits one of the two signs has 8, the other 7
    step = np.abs(wanted.reshape(-1, _BLOCK)).max(1, keepdims=True) / steps
    bound = most * step + steps * (step * 2.0**-11 + _EVEN) + 1e-6 * step  # the step itself is in half precision
    return np.broadcast_to(bound, (len(bound), _BLOCK)).reshape(wanted.shape).astype(np.float32)


def finite(path: Path) -> int:
    """How many weights a file holds, each a number.

    Raises:
        ExportError: if it is damaged, or some are NaN or infinite.
    """
    count = 0
    for entry in read(path).tensors:
        if not np.isfinite(gguf.quants.dequantize(entry.data, entry.tensor_type)).all():
            raise ExportError(f"{path.name}: {entry.name} has NaN or infinity; export it again")
        count += int(entry.n_elements)
    return count
