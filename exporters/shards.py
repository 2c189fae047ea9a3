"""Weights as safetensors files, one shard in memory at a time."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn

LIMIT = 5_000_000_000


def write_shards(
    folder: Path, skeleton: Mapping[str, Tensor], read: Callable[[str], Tensor], *, limit: int = LIMIT
) -> None:
    """Write a tensor for each of `skeleton`, which has their shapes and types, as `read` gives it by name.

    One file up to `limit` bytes, else several and an index, as transformers names them.
    """
    plan = split_torch_state_dict_into_shards(_sized(skeleton), max_shard_size=limit)
    for file, names in plan.filename_to_tensors.items():
        tensors = {name: read(name).to(skeleton[name].dtype).contiguous() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o666 & ~_umask())  # the library lets nobody else read it
    if plan.is_sharded:
        _write_index(folder, plan)


def aliases(model: nn.Module) -> list[list[str]]:
    """The names of every saved tensor, all those of a shared one together."""
    found: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), []).append(name)
    return list(found.values())


def distinct(model: nn.Module) -> dict[str, Tensor]:
    """Every saved tensor once, by the first of its names."""
    state = model.state_dict()
    return {names[0]: state[names[0]] for names in aliases(model)}


def _sized(skeleton: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same sizes with a storage each, which is what splitting looks at."""
    return {name: torch.empty_like(tensor, device="meta") for name, tensor in skeleton.items()}


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _write_index(folder: Path, plan: StateDictSplit) -> None:
    table = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")
