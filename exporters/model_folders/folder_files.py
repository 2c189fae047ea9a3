"""Files of a Hugging Face folder other than weights: configuration, tokenizer, settings and license."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from graphprune.errors import ExportError
from graphprune.exporters.model_folders.module_folders import copy_modules
from graphprune.huggingface import model_folder
from graphprune.support.atomic_output import check_output

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: Patterns of tokenizer, generation and license files; weights, code and graphprune's own files are never copied.
_LICENSE = ("LICENSE*", "NOTICE*")
_COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", *_LICENSE)
_GENERIC = "PreTrainedTokenizerFast"
_EXCLUDED = {
    "config.json", "report.json", "plan.json", "export_report.json", "genai_config.json", "web.json", "cases.json",
}  # fmt: skip


def require_apart(source: Path, output: Path) -> None:
    """Check that the output does not replace the source.

    Raises:
        ExportError: if `output` is the source or a folder that contains it.
    """
    if output.resolve() in (source.resolve(), *source.resolve().parents):
        raise ExportError(f"{output} is or contains the source {source}; choose another output")


def require_output(source: Path, output: Path, force: bool) -> None:
    """Check, before any work, that the output may be written.

    Raises:
        ExportError: as `require_apart`, or if `output` exists and `force` is not set.
    """
    require_apart(source, output)
    check_output(output, force)


def copy_companion_files(source: Path, folder: Path) -> None:
    """Copy the files of tokenizer, generation settings, preprocessing and license."""
    paths = {path for pattern in _COPIED for path in source.glob(pattern)}
    for path in sorted(paths):
        if path.is_file() and path.name not in _EXCLUDED and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    copy_modules(source, folder)
    _name_tokenizer(folder / "tokenizer_config.json", source)


def copy_license(source: Path, folder: Path) -> None:
    """Copy the license files."""
    for path in sorted(path for pattern in _LICENSE for path in source.glob(pattern) if path.is_file()):
        shutil.copyfile(path, folder / path.name)


def write_config(folder: Path, config: PreTrainedConfig, dtype: torch.dtype, **extra: dict[str, Any]) -> None:
    """Write config.json with `extra` keys, and with the keys that transformers 4 needs."""
    config.dtype = dtype
    config.save_pretrained(folder)
    path = folder / "config.json"
    table = _with_legacy_rope(json.loads(path.read_text(encoding="utf-8")))
    extra = {key: {**table.get(key, {}), **value} for key, value in extra.items()}
    path.write_text(json.dumps({**table, **extra}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _with_legacy_rope(table: dict[str, Any]) -> dict[str, Any]:
    """The table with `rope_theta`, which transformers 4 reads and silently sets to 10000 if it is missing."""
    table = {key: _with_legacy_rope(value) if isinstance(value, dict) else value for key, value in table.items()}
    rope = table.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        table.setdefault("rope_theta", rope["rope_theta"])
    return table


def _name_tokenizer(path: Path, source: Path) -> None:
    """Set a tokenizer class that transformers 4 knows, and the model's input names: by default that class also returns
    token types, which most decoders reject."""
    if not path.is_file() or not path.with_name("tokenizer.json").is_file():
        return
    table = json.loads(path.read_text(encoding="utf-8"))
    if table.get("tokenizer_class") in (None, "TokenizersBackend", _GENERIC):
        table["tokenizer_class"] = _GENERIC
        table["model_input_names"] = model_folder.tokenizer(source).model_input_names
        path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
