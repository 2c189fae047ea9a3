"""Tests of folders of further modules, as sentence-transformers lists them."""

import json
from pathlib import Path

import pytest

from graphprune.errors import ExportError
from graphprune.exporters.model_folders.module_folders import copy_modules, follow_width


def test_listed_modules_are_copied_and_follow_the_width(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "copy"
    for name, settings in (("1_Pooling", {"word_embedding_dimension": 32}), ("2_Dense", {"in_features": 32})):
        (source / name).mkdir(parents=True)
        (source / name / "config.json").write_text(json.dumps(settings))
        (source / name / "code.py").touch()
    paths = ["", "1_Pooling", "2_Dense", "../other", "3_Normalize"]
    folder.mkdir()
    for place in (source, folder):
        (place / "modules.json").write_text(json.dumps([{"idx": i, "path": path} for i, path in enumerate(paths)]))
    copy_modules(source, folder)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {"modules.json", "1_Pooling/config.json", "2_Dense/config.json"}
    follow_width(folder, 32, 32)
    with pytest.raises(ExportError, match="2_Dense has weights for embeddings of width 32, which the cut makes 24"):
        follow_width(folder, 32, 24)
    assert json.loads((folder / "1_Pooling" / "config.json").read_text()) == {"word_embedding_dimension": 24}
