"""Folders of further modules that a modules.json lists, such as pooling and dense layers of sentence-transformers."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from graphprune.errors import ExportError

LIST = "modules.json"


def copy_modules(source: Path, folder: Path) -> None:
    """Copy the folders of all listed modules except the model itself; code is not copied."""
    for name in _listed(source):
        shutil.copytree(source / name, folder / name, ignore=shutil.ignore_patterns("*.py"), symlinks=False)


def follow_width(folder: Path, before: object, after: object) -> None:
    """Set the width of the embeddings in the settings of the copied modules.

    Raises:
        ExportError: if a module has weights for the width before.
    """
    for name in _listed(folder) if before != after else ():
        path = folder / name / "config.json"
        table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if table.get("in_features") == before:
            raise ExportError(
                f"{name} has weights for embeddings of width {before}, which the cut makes {after}: protect the hidden "
                "size, or take the module out of modules.json"
            )
        changed = {k: after if k.endswith("embedding_dimension") and v == before else v for k, v in table.items()}
        if changed != table:
            path.write_text(json.dumps(changed, indent=4) + "\n", encoding="utf-8")


def _listed(folder: Path) -> Iterator[str]:
    """Names of the folders of the listed modules that exist in this folder."""
    path = folder / LIST
    entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    for entry in entries if isinstance(entries, list) else []:
        name = entry.get("path") if isinstance(entry, dict) else None
        if (
            isinstance(name, str)
            and name not in ("", ".", "..")
            and Path(name).name == name
            and (folder / name).is_dir()
        ):
            yield name
