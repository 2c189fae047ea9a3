"""What is cached is made once, complete or not at all."""

from pathlib import Path

import pytest

from graphprune.errors import LoadError
from graphprune.support import cache


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_made_once_until_a_source_changes(tmp_path: Path) -> None:
    source, made = tmp_path / "source", []
    source.write_text("a")

    def make(target: Path) -> None:
        made.append(target)
        (target / "result").write_text("done")

    first = cache.once("kind", [source], make)
    assert cache.once("kind", [source], make) == first
    assert (first / "result").read_text() == "done"
    assert len(made) == 1
    source.write_text("longer")
    assert cache.once("kind", [source], make) != first


def test_an_interrupted_making_leaves_nothing(tmp_path: Path) -> None:
    def make(target: Path) -> None:
        (target / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.once("kind", [], make)
    assert not list((tmp_path / "cache").rglob("*"))


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(LoadError, match=r"cannot write the cache .*; set XDG_CACHE_HOME to a folder with enough space"):
        cache.once("kind", [], lambda target: None)
