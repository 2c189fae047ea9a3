"""A package is imported when it is used, and where that fails one line names it and says what to do."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphprune.errors import PackageError
from graphprune.support import packages
from graphprune.support.packages import Lazy, failed_import, load
from tests.fakes import NMS, broken


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder first on the path; what is imported from it is forgotten."""
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_a_package_is_imported_when_a_name_of_it_is_read(folder: Path) -> None:
    (folder / "some_package").mkdir()
    (folder / "some_package" / "__init__.py").write_text("size = 3\n")
    (folder / "some_package" / "inner.py").write_text("size = 4\n")
    package = Lazy("some_package")
    assert not hasattr(package, "__wrapped__") and "some_package" not in sys.modules
    assert package.size == 3 and package.inner.size == 4
    with pytest.raises(AttributeError, match=r"^some_package has no other$"):
        package.other  # noqa: B018


def test_a_missing_package(folder: Path) -> None:
    with pytest.raises(PackageError, match=r"^no_such_package is not installed: pip install no_such_package$"):
        Lazy("no_such_package").size  # noqa: B018
    with pytest.raises(PackageError, match=r"^no_such_package is not installed: pip install 'graphprune\[some\]'$"):
        load("no_such_package.inner", "some")


def test_a_missing_runtime_is_an_extra_of_two_kinds(folder: Path) -> None:
    broken(folder, "needs_runtime", "ModuleNotFoundError('No module', name='onnxruntime')")
    words = r"onnxruntime, which needs_runtime needs, is not installed: pip install 'graphprune\[cpu\]'; \[gpu\]"
    with pytest.MonkeyPatch.context() as patched, pytest.raises(PackageError, match=words):
        patched.setattr(packages, "find_spec", lambda name: None)
        load("needs_runtime")


def test_a_package_that_lacks_another(folder: Path) -> None:
    broken(folder, "needy", "ModuleNotFoundError('No module', name='no_such_package')")
    with pytest.raises(
        PackageError, match="^no_such_package, which needy needs, is not installed: pip install no_such"
    ):
        load("needy")


def test_a_broken_package(folder: Path) -> None:
    broken(folder, "worn", "OSError('libworn.so: cannot open shared object file')", version="1.2")
    words = r"^worn 1.2 cannot be imported \(reason: libworn.so: .* file\): reinstall it \(pip install worn\)$"
    with pytest.raises(PackageError, match=words):
        load("worn.inner")


def test_a_package_of_another_torch_behind_one_that_can_do_without(folder: Path) -> None:
    broken(folder, "vision", f"RuntimeError({NMS!r})", version="0.28.0", requires="torch (==2.99)")
    (folder / "models.py").write_text(
        "try:\n    import vision\nexcept Exception as fault:\n    raise ModuleNotFoundError('No model') from fault\n"
    )
    words = (
        rf"^vision 0.28.0 cannot be imported with torch \S+ \(reason: {NMS}\): "
        "install the vision built for this torch, or uninstall it$"
    )
    with pytest.raises(PackageError, match=words):
        load("models")


def test_an_error_of_no_import() -> None:
    with pytest.raises(ValueError, match="three") as caught:
        raise ValueError("three")
    assert failed_import(caught.value) is None


def test_packages_that_set_up_logging_do_it_for_themselves(folder: Path) -> None:
    (folder / "loud.py").write_text("import logging\nlogging.basicConfig(level=1, force=True)\n")
    before = list(logging.root.handlers), logging.root.level
    load("loud")
    assert (logging.root.handlers, logging.root.level) == before
