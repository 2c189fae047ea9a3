"""Origins of programs that are saved as Hugging Face folders: a folder, or a traced module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from graphprune.errors import ExportError
from graphprune.exporters.checks.reloading import Destination, reload
from graphprune.exporters.model_folders.folder_files import copy_companion_files
from graphprune.huggingface import model_folder, traced_model
from graphprune.huggingface.meta_models import auto_class, is_own, stock_class
from graphprune.ir.program import Program, Traced

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Reload = Callable[[Path, Destination], nn.Module]


@dataclass(frozen=True)
class Origin:
    """Origin of a program: its configuration and stored type, the start of its names in the program, and its name for
    messages. `folder` holds its other files, if it was loaded; `reload` loads a saved folder in its place."""

    name: str
    settings: PreTrainedConfig
    dtype: torch.dtype
    reload: Reload
    prefix: str = ""
    folder: Path | None = None

    @classmethod
    def of(cls, program: Program) -> Origin:
        """The origin of a program.

        Raises:
            ExportError: if it is no model of transformers, or its folder does not exist any more.
        """
        source = program.source
        if program.traced is not None and source is None:
            return _of_module(program, program.traced)
        if source is None or source.kind != "huggingface":
            raise ExportError(
                "the program was not loaded from a Hugging Face folder, and its module neither is nor holds one model "
                "of transformers, so there is no config to save it with; use destination free, which saves a .pt2 file"
            )
        if not (source.path / model_folder.CONFIG).is_file():
            raise ExportError(
                f"{source.path / model_folder.CONFIG}, from which the program was loaded, does not exist any more; "
                "restore the folder"
            )
        settings = model_folder.settings(source)
        return cls(f"the model in {source.path}", settings, source.dtype, reload, folder=source.path)

    def copy_files(self, folder: Path) -> None:
        """Copy the files of tokenizer, generation settings, preprocessing and license."""
        if self.folder is not None:
            copy_companion_files(self.folder, folder)


def loads_with(config: PreTrainedConfig, destination: Destination) -> list[str]:
    """Python calls that load such a folder."""
    name, kind = auto_class(config).__name__, stock_class(config)
    by_auto = f"transformers.{name}.from_pretrained(folder, trust_remote_code=True)"
    if not is_own(kind):
        stock = f"transformers.{name}.from_pretrained(folder)"
        return [stock] if destination == "stock" else ["graphprune.load(folder)", by_auto]
    if destination == "stock" and not getattr(kind, "_auto_class", None):
        return [f"{kind.__name__}.from_pretrained(folder)"]
    return [by_auto.replace(name, kind._auto_class or "AutoModel") if is_own(auto_class(config)) else by_auto]


def _of_module(program: Program, traced: Traced) -> Origin:
    settings = traced_model.settings(traced)
    kind = stock_class(settings).__name__
    outside = sorted(name for name in program.parameters if not name.startswith(traced.prefix))
    if outside:
        raise ExportError(
            f"the traced module has {len(outside)} parameters, the first {outside[0]}, outside its {kind}, and a "
            f"folder of {kind} cannot hold them: write the cut back, then call save_pretrained of "
            f"{traced.prefix.removesuffix('.')} and save the others; or use destination free"
        )
    return Origin(f"the traced {kind}", settings, traced.dtype, partial(_reload, program, traced), traced.prefix)


def _reload(program: Program, traced: Traced, folder: Path, destination: Destination) -> nn.Module:
    kind: Any = stock_class(traced.settings)
    model = reload(folder, destination, kind if is_own(kind) else None)
    return traced_model.inserted(traced, model, program.weights)
