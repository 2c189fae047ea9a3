"""Targets of packages that not everybody has say so, before they do any work."""

import sys
from pathlib import Path

import pytest

from graphprune.errors import ExportError
from graphprune.exporters import EXPORTERS
from graphprune.exporters.export_folders.package_formats import FORMATS


@pytest.mark.parametrize(
    ("target", "module"), [("openvino", "openvino"), ("executorch", "executorch.exir"), ("litert", "litert_torch")]
)
def test_a_package_that_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    words = rf"target {target} takes a package that cannot be imported: .*; pip install 'graphprune\[{target}\]'"
    with pytest.raises(ExportError, match=words):
        EXPORTERS[target](tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_two_formats_share_a_file() -> None:
    assert len({made.file for made in FORMATS.values()}) == len(FORMATS)
