"""Names are taken once, and a wrong one is answered with a right one."""

import sys
from pathlib import Path

import pytest

from graphprune.errors import RegistryError
from graphprune.registry import Registry, discover


def methods() -> Registry[str, int]:
    found: Registry[str, int] = Registry("score")
    found.register("fasp", "flap")(1)
    found.register("random")(2)
    return found


def test_things_are_found_by_each_of_their_names() -> None:
    found = methods()
    assert (found["fasp"], found["flap"], found["random"]) == (1, 1, 2)
    assert list(found) == ["fasp", "flap", "random"]
    assert len(found) == 3
    assert "fasp" in found
    assert "no" not in found


def test_a_name_is_taken_once() -> None:
    with pytest.raises(RegistryError, match="^score 'fasp' is registered twice$"):
        methods().register("fasp")(3)


def test_an_unknown_name_is_answered_with_its_neighbours() -> None:
    with pytest.raises(RegistryError, match="^no score 'randm'; did you mean random[?]$"):
        methods()["randm"]


def test_a_name_like_none_is_answered_with_all() -> None:
    with pytest.raises(RegistryError, match="^no score 'zzzz'; choose one of fasp, flap, random$"):
        methods()["zzzz"]


def test_many_names_are_not_all_listed() -> None:
    found: Registry[str, int] = Registry("score", "`graphprune scores` lists them")
    found.register(*(f"name-{i}" for i in range(30)))(1)
    with pytest.raises(RegistryError, match="^no score 'zzzz'; `graphprune scores` lists them$"):
        found["zzzz"]


def test_a_plug_in_that_cannot_be_imported_is_loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some_plugins"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "good.py").touch()
    (folder / "worse.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        discover("some_plugins", [str(folder)])
    assert "some_plugins.good" in sys.modules
