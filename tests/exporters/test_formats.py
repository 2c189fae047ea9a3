"""Targets of packages that not everybody has say so, before they do any work."""

import sys
from pathlib import Path

import pytest

from graphprune.errors import PackageError
from graphprune.exporters import EXPORTERS
from graphprune.exporters.targets import executorch, litert, openvino


@pytest.mark.parametrize(
    ("target", "module"), [("openvino", "openvino"), ("executorch", "executorch.exir"), ("litert", "litert_torch")]
)
def test_a_package_that_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    package = module.partition(".")[0]
    monkeypatch.setitem(sys.modules, package, None)
    words = rf"^{package} is not installed: pip install 'graphprune\[{target}\]'$"
    with pytest.raises(PackageError, match=words):
        EXPORTERS[target].export(tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_two_formats_share_a_file() -> None:
    assert len({module.FILE for module in (executorch, litert, openvino)}) == 3
