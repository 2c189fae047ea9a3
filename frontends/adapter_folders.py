"""Folders of low-rank adapters, merged with the models to which they belong."""

import logging
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import LoadError
from graphprune.frontends import checkpoints
from graphprune.huggingface import model_folder
from graphprune.huggingface.hub_models import local_path
from graphprune.huggingface.meta_models import on_meta
from graphprune.ir import weight_files
from graphprune.ir.weights import Stored
from graphprune.support import cache

log = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_PART = re.compile(r"(?P<layer>.+)\.lora_(?P<part>[AB])\.weight")
#: Fields of an adapter's configuration that change no number of the merged weights, or that `_Adapter` reads.
_KNOWN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_dropout", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
_EMPTY = ("none", "None", "NONE")  # of the field bias, in words


def is_adapter(folder: Path) -> bool:
    """Whether this folder holds an adapter, with or without its model."""
    return (folder / model_folder.ADAPTER).is_file()


def merged(folder: Path) -> Path:
    """Folder of the model of an adapter, with the adapter added to its weights; it is made once, in the cache.

    The model is in the same folder, or in the one that the configuration of the adapter names.

    Raises:
        LoadError: if there is no such model, or the adapter is of a kind that cannot be added.
    """
    if not is_adapter(folder):
        raise LoadError(f"{folder} has no {model_folder.ADAPTER}, so there is no adapter to merge; omit merge_adapters")
    adapter = _Adapter(folder, model_folder.read_json(folder / model_folder.ADAPTER))
    adapter.require_known()
    base = adapter.base

    def fill(target: Path) -> None:
        log.info("%s: merging the adapter with %s, once, into %s", folder, base, target.parent)
        _copy(base, target)
        if base != folder:
            _copy(folder, target)
        adapter.write(target)

    sources = [*_files(base), *model_folder.weight_files(base), *_files(folder), folder / WEIGHTS]
    return cache.once("merged-adapters", sorted({*sources}), fill)


def _files(folder: Path) -> Iterator[Path]:
    """Settings and tokenizer of a folder."""
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".txt", ".model", ".jinja") and not path.name.endswith(".index.json"):
            yield path


def _copy(source: Path, target: Path) -> None:
    for path in _files(source):
        if path.name != model_folder.ADAPTER:
            shutil.copyfile(path, target / path.name)


@dataclass(frozen=True)
class _Adapter:
    """Adapter of a folder with its settings."""

    folder: Path
    settings: Mapping[str, Any]

    def refuse(self, why: str) -> LoadError:
        return LoadError(
            f"{self.folder} holds an adapter that cannot be merged: {why}. Merge it with peft: "
            "PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(new_folder)"
        )

    def require_known(self) -> None:
        """Check that the adapter is a sum of a low rank, without settings that mean something else.

        Raises:
            LoadError: if it is not.
        """
        if (kind := self.settings.get("peft_type")) != "LORA":
            raise self.refuse(f"peft_type is {kind!r}, expected 'LORA'")
        if other := sorted(name for name, value in self.settings.items() if value and name not in _KNOWN):
            raise self.refuse(f"{other[0]} is {self.settings[other[0]]!r}, which is not supported")
        if self.settings.get("alpha_pattern"):
            raise self.refuse("alpha_pattern sets other scales for some layers")
        if (bias := self.settings.get("bias") or "none") not in _EMPTY:
            raise self.refuse(f"bias is {bias!r}, expected 'none'")
        if (start := self.settings.get("init_lora_weights", True)) not in (True, False, "gaussian"):
            raise self.refuse(f"init_lora_weights is {start!r}, which changes the weights of the model, too")

    @property
    def base(self) -> Path:
        """Folder of the model.

        Raises:
            LoadError: if it is not on this machine.
        """
        if (self.folder / model_folder.CONFIG).is_file():
            return self.folder
        name = str(self.settings.get("base_model_name_or_path") or "")
        for path in (Path(name), self.folder / name, self._cached(name)):
            if name and path is not None and model_folder.is_folder(path):
                return path
        raise LoadError(
            f"{self.folder / model_folder.ADAPTER}: base_model_name_or_path is {name!r}, expected a folder with the "
            "model of the adapter, or a model in the local cache of the hub; download it, and name its folder"
        )

    def _cached(self, name: str) -> Path | None:
        """Folder of a model of the hub in the local cache; nothing is downloaded because a file names it."""
        try:
            return Path(local_path(name, self.settings.get("revision"), offline=True))
        except LoadError:
            return None

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Tensors of the adapter under the names of the model's layers."""
        path = self.folder / WEIGHTS
        if not path.is_file():
            raise self.refuse(f"it has no {WEIGHTS}")
        stored = checkpoints.tensors(path)
        return {name.removeprefix(PREFIX): tensor for name, tensor in stored.items()}

    def changes(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What is added to weights, and what takes the place of others, by their names.

        Raises:
            LoadError: if a tensor is of another kind.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        instead: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            if match := _PART.fullmatch(name):
                parts.setdefault(match["layer"], {})[match["part"]] = tensor
            elif "lora_" in name:
                raise self.refuse(f"{name} is no factor of a linear layer")
            else:
                instead[name] = tensor
        if lacking := sorted(layer for layer, some in parts.items() if len(some) < 2):
            raise self.refuse(f"{lacking[0]} has one factor, expected two")
        return {f"{layer}.weight": self._product(some["A"], some["B"]) for layer, some in parts.items()}, instead

    def _product(self, first: Tensor, last: Tensor) -> Tensor:
        """Product of the factors with its scale, shape (outputs, inputs), in the layout of the weights."""
        rank = len(first)
        if first.dim() != 2 or last.dim() != 2 or last.shape[1] != rank:
            raise self.refuse(f"factors have shapes {list(first.shape)} and {list(last.shape)}")
        scale = self.settings.get("lora_alpha", 8) / (rank**0.5 if self.settings.get("use_rslora") else rank)
        product: Tensor = scale * (last.float() @ first.float())
        return product.T if self.settings.get("fan_in_fan_out") else product

    def write(self, target: Path) -> None:
        """Write the weights of the model with those of the adapter into a folder that has its settings.

        Raises:
            LoadError: if the two do not fit together.
        """
        added, instead = self.changes()
        stored = checkpoints.entries(self.base)
        model = on_meta(model_folder.config(target))
        places = checkpoints.match(model, stored)
        self._require_own(model, {**added, **instead}, places)
        by_key = {places[name].key: name for name in (*added, *instead)}
        every = Stored({key: (entry.path, key) for key, entry in stored.items()})

        def read(key: str) -> Tensor:
            tensor = every[key]
            name = by_key.get(key)
            if name is None:
                return tensor
            return (tensor.float() + added[name] if name in added else instead[name]).to(tensor.dtype)

        types = {name: dtype for dtype, name in weight_files.DTYPE_NAMES.items()}
        empty = {key: torch.empty(e.shape, dtype=types[e.dtype], device="meta") for key, e in stored.items()}
        weight_files.write_shards(target, empty, read)

    def _require_own(
        self, model: torch.nn.Module, changed: Mapping[str, Tensor], places: Mapping[str, checkpoints.Entry]
    ) -> None:
        """Check that every changed weight is stored as the model has it, and shared with no other."""
        state = model.state_dict(keep_vars=True)
        names = Counter(id(tensor) for tensor in state.values())
        for name, tensor in changed.items():
            if name not in places:
                raise self.refuse(f"the model stores no weight {name}")
            if tensor.shape != state[name].shape:
                raise self.refuse(f"{name} has shape {list(state[name].shape)}, the adapter {list(tensor.shape)}")
            if names[id(state[name])] > 1:
                raise self.refuse(f"{name} is shared with other layers, which the adapter leaves as they are")
