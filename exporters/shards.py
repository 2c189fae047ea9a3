"""Weights as safetensors files, one shard in memory at a time."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

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
