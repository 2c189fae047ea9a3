"""Match stored tensors with the weights of a model, without reading any of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from graphprune.errors import LoadError, because
from graphprune.huggingface import model_folder
from graphprune.ir.weights import FileStamp, file_stamp
from graphprune.support.packages import transformers

if TYPE_CHECKING:
    from transformers.core_model_loading import WeightRenaming

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """Tensor in a safetensors file, with the stamp of the file when its header was read."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    stamp: FileStamp


def entries(folder: Path) -> dict[str, Entry]:
    """Tensors of the folder by stored name, from the headers of its files.

    Raises:
        LoadError: if a file is missing, truncated or not in the safetensors format.
    """
    model_folder.require_safetensors(folder)
    return {entry.key: entry for path in model_folder.weight_files(folder) for entry in _read_header(path)}


def tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a small file, by their names.

    Raises:
        LoadError: if it is truncated or not in the safetensors format.
    """
    known = {entry.key for entry in _read_header(path)}
    return {key: tensor for key, tensor in load_file(path).items() if key in known}


def stored_dtype(stored: Mapping[str, Entry]) -> torch.dtype:
    """Most frequent floating-point type of the stored tensors."""
    counts = Counter(entry.dtype for entry in stored.values() if entry.dtype in DTYPES)
    return DTYPES[counts.most_common(1)[0][0]] if counts else torch.float32


def match(model: nn.Module, stored: Mapping[str, Entry]) -> dict[str, Entry]:
    """Entries by name of the weight, for weights stored as they are, under their own name or a renamed one."""
    state = model.state_dict(keep_vars=True)
    renamings = [rule for rule in _rules(model) if isinstance(rule, transformers.core_model_loading.WeightRenaming)]
    prefix = getattr(model, "base_model_prefix", "")
    matched: dict[str, Entry] = {}
    for key, entry in stored.items():
        target = next((name for name in _names(key, prefix, renamings) if name in state), None)
        if target is not None:
            matched.setdefault(target, entry)
    return _share(state, matched)


def missing(model: nn.Module, matched: Mapping[str, Entry]) -> list[str]:
    """Names of floating-point weights without an entry; integer counters may be absent."""
    state = model.state_dict(keep_vars=True)
    return [name for name, tensor in state.items() if name not in matched and tensor.is_floating_point()]


def check_types(folder: Path, model: nn.Module, matched: Mapping[str, Entry]) -> None:
    """Check that every floating-point weight is stored as plain numbers, not as codes that need scales.

    Raises:
        LoadError: if one is not.
    """
    state = model.state_dict(keep_vars=True)
    codes = {n: e.dtype for n, e in matched.items() if state[n].is_floating_point() and e.dtype not in DTYPES}
    for name, dtype in codes.items():
        raise LoadError(
            f"{folder} stores {len(codes)} weights as {dtype}, the first {name}: quantized numbers, which mean nothing "
            f"without their scales; expected {', '.join(DTYPES)}. Load the model with transformers, call "
            "model.dequantize(), and save it"
        )


def check_shapes(folder: Path, model: nn.Module, matched: Mapping[str, Entry]) -> None:
    """Compare every stored shape with the one that follows from the configuration.

    Raises:
        LoadError: if one differs.
    """
    state = model.state_dict(keep_vars=True)
    wrong = [name for name, entry in matched.items() if entry.shape != tuple(state[name].shape)]
    if not wrong:
        return
    first = matched[wrong[0]]
    raise LoadError(
        f"{first.path}: {first.key} has shape {list(first.shape)}, expected {list(state[wrong[0]].shape)} by "
        f"{folder / model_folder.CONFIG} ({len(wrong)} such weights); one of the two files belongs to another model"
    )


def are_computed(model: nn.Module, absent: Sequence[str]) -> bool:
    """Whether transformers computes absent weights: from other stored tensors, or from sizes, as sinusoids are."""
    globs = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    from_sizes = all(any(re.search(glob, name) for glob in globs) for name in absent)
    return from_sizes or any(
        not isinstance(rule, transformers.core_model_loading.WeightRenaming) for rule in _rules(model)
    )


def _read_header(path: Path) -> Iterator[Entry]:
    try:
        stamp = file_stamp(path)
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                view = file.get_slice(key)
                yield Entry(path, key, tuple(view.get_shape()), view.get_dtype(), stamp)
    except (SafetensorError, OSError) as fault:
        raise LoadError(
            f"{path} ({_state(path)}) is truncated or no safetensors file{because(fault)}; download or copy it again"
        ) from fault


def _state(path: Path) -> str:
    """Size of an unreadable file, and whether it is a pointer only."""
    try:
        with path.open("rb") as file:
            pointer = file.read(7) == b"version"
        return f"{path.stat().st_size} bytes{' (a Git LFS pointer, not the file itself)' if pointer else ''}"
    except OSError as fault:
        return f"unreadable: {fault.strerror}"


def _names(key: str, prefix: str, renamings: list[WeightRenaming]) -> Iterator[str]:
    """Names of weights that a stored name may stand for, most likely first."""
    renamed, _ = transformers.core_model_loading.rename_source_key(key, renamings, [])
    for name in (key, renamed):
        yield name
        yield f"{prefix}.{name}"
        yield name.removeprefix(f"{prefix}.")


def _rules(model: nn.Module) -> list[Any]:
    rules: list[Any] = transformers.conversion_mapping.get_model_conversion_mapping(model)  # type: ignore[arg-type]
    return rules


def _share(state: Mapping[str, Any], matched: dict[str, Entry]) -> dict[str, Entry]:
    """Extend the entry of one name of a shared weight to its names without an entry."""
    by_tensor = {id(state[name]): entry for name, entry in matched.items()}
    return {name: matched.get(name, by_tensor[id(t)]) for name, t in state.items() if id(t) in by_tensor}
