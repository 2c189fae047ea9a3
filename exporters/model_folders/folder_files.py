"""What lies beside the weights in a Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from graphprune.errors import ExportError
from graphprune.huggingface import model_folder
from graphprune.support.atomic_output import check_output

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: Tokenizer, generation and licence files; never weights, code, or what graphprune writes itself.
_LICENCE = ("LICENSE*", "NOTICE*")
_BESIDE = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", *_LICENCE)
_GENERIC = "PreTrainedTokenizerFast"
_OWN = {"config.json", "report.json", "plan.json", "export_report.json", "genai_config.json", "web.json", "cases.json"}


def require_apart(source: Path, output: Path) -> None:
    """Refuse an output that would replace what is read.

    Raises:
        ExportError: if `output` is the source or a folder around it.
    """
    if output.resolve() in (source.resolve(), *source.resolve().parents):
        raise ExportError(f"{output} is or holds {source}, which is read; choose another output")


def require_output(source: Path, output: Path, force: bool) -> None:
    """Refuse, before any work, an output that may not be written.

    Raises:
        ExportError: as `require_apart`, or if there is something and `force` does not allow to replace it.
    """
    require_apart(source, output)
    check_output(output, force)


def copy_beside(source: Path, folder: Path) -> None:
    """Copy tokenizer, generation settings, preprocessing and licence."""
    found = {path for pattern in _BESIDE for path in source.glob(pattern)}
    for path in sorted(found):
        if path.is_file() and path.name not in _OWN and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    _name_tokenizer(folder / "tokenizer_config.json", source)


def copy_licence(source: Path, folder: Path) -> None:
    """Copy the files that say what may be done with the weights."""
    for path in sorted(path for pattern in _LICENCE for path in source.glob(pattern) if path.is_file()):
        shutil.copyfile(path, folder / path.name)


def write_config(folder: Path, config: PreTrainedConfig, dtype: torch.dtype, **extra: Any) -> None:
    """Write config.json with `extra` keys, and those by which versions 4 of transformers read it rightly."""
    config.dtype = dtype
    config.save_pretrained(folder)
    path = folder / "config.json"
    table = _with_legacy_rope(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps({**table, **extra}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _with_legacy_rope(table: dict[str, Any]) -> dict[str, Any]:
    """Versions 4 look for `rope_theta` and silently take 10000 where it is missing."""
    table = {key: _with_legacy_rope(value) if isinstance(value, dict) else value for key, value in table.items()}
    rope = table.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        table.setdefault("rope_theta", rope["rope_theta"])
    return table


def _name_tokenizer(path: Path, source: Path) -> None:
    """Versions 4 do not know the class by which versions 5 call a tokenizer of tokenizer.json, and theirs also makes
    token types, which most decoders refuse."""
    if not path.is_file() or not path.with_name("tokenizer.json").is_file():
        return
    table = json.loads(path.read_text(encoding="utf-8"))
    if table.get("tokenizer_class") in (None, "TokenizersBackend", _GENERIC):
        table["tokenizer_class"] = _GENERIC
        table["model_input_names"] = model_folder.tokenizer(source).model_input_names
        path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
