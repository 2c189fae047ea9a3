"""Write weights as safetensors files with one tensor in memory at a time."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from torch import Tensor, nn

from graphprune.errors import ExportError

MAX_SHARD_BYTES = 5_000_000_000
#: Names of dtypes in the format, in the order in which the library lays out tensors: the widest come first, so that
#: each is aligned to its size.
DTYPE_NAMES = {
    torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64", torch.float32: "F32",
    torch.uint32: "U32", torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16",
    torch.int16: "I16", torch.float8_e5m2fnuz: "F8_E5M2FNUZ", torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip


def write_shards(
    folder: Path, skeleton: Mapping[str, Tensor], read: Callable[[str], Tensor], *, limit: int = MAX_SHARD_BYTES
) -> None:
    """Write the tensors of `skeleton`, which has their shapes and types; `read` returns each by name, once.

    Up to `limit` bytes there is one file, otherwise several and an index, with the names of transformers.

    Raises:
        ExportError: if `read` returns another shape, or the format does not support a type.
    """
    plan = split_torch_state_dict_into_shards(_sized(skeleton), max_shard_size=limit)
    for file, names in plan.filename_to_tensors.items():
        write_file(folder / file, {name: skeleton[name] for name in names}, read)
    if plan.is_sharded:
        _write_index(folder, plan)


def write_file(path: Path, skeleton: Mapping[str, Tensor], read: Callable[[str], Tensor]) -> None:
    """Write one safetensors file a tensor at a time; the library itself needs all tensors at once.

    Raises:
        ExportError: as `write_shards`.
    """
    names = _ordered(skeleton)
    with path.open("wb") as file:
        file.write(_header(skeleton, names))
        for name in names:
            tensor, expected = read(name), skeleton[name]
            if tensor.shape != expected.shape:
                raise ExportError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}")
            file.write(_bytes(tensor.to(expected.dtype)))


def _ordered(skeleton: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors in their order in a file."""
    for name, tensor in skeleton.items():
        if tensor.dtype not in DTYPE_NAMES:
            raise ExportError(f"{name} is of type {tensor.dtype}, which safetensors files cannot hold")
    order = list(DTYPE_NAMES)
    return sorted(skeleton, key=lambda name: (order.index(skeleton[name].dtype), name))


def _header(skeleton: Mapping[str, Tensor], names: Sequence[str]) -> bytes:
    """Header of a file: its length, and the type, shape and offsets of every tensor."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = skeleton[name]
        start, end = end, end + tensor.numel() * tensor.itemsize
        table[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    """Memory of a tensor, in the byte order of the format."""
    rows = tensor.detach().cpu().contiguous().reshape(-1)
    flat = rows.view(torch.uint8).numpy()
    if sys.byteorder == "big" and tensor.itemsize > 1:
        size = tensor.itemsize // (2 if tensor.is_complex() else 1)
        flat = flat.reshape(-1, size)[:, ::-1].copy().reshape(-1)
    return flat.data


def aliases(model: nn.Module) -> list[list[str]]:
    """Names of every saved tensor; a shared one has several."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return list(names.values())


def distinct(model: nn.Module) -> dict[str, Tensor]:
    """Saved tensors by the first of their names, each once."""
    state = model.state_dict()
    return {names[0]: state[names[0]] for names in aliases(model)}


def _sized(skeleton: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Meta tensors of the same sizes with separate storages, by which the library splits files."""
    return {name: torch.empty_like(tensor, device="meta") for name, tensor in skeleton.items()}


def _write_index(folder: Path, plan: StateDictSplit) -> None:
    table = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")
