"""What a user installs holds every folder once, and the checkout stays tidy."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINKED = ("passes", "frontends", "exporters")
TOP = {
    ".ci", ".gitignore", ".pre-commit-config.yaml", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE",
    "README.md", "constraints.txt", "exporters", "frontends", "graphprune", "passes", "pyproject.toml", "tests",
    "tools",
}  # fmt: skip


def build(kind: str, source: Path, into: Path) -> Path:
    """The wheel or sdist of a source folder, built without a network."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(into)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(into.iterdir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


def source_modules() -> set[str]:
    """The modules of the checkout under the names that they are imported by."""
    own = [p.relative_to(ROOT).as_posix() for p in (ROOT / "graphprune").rglob("*.py")]
    names = {name for name in own if not name.startswith(tuple(f"graphprune/{link}/" for link in LINKED))}
    for link in LINKED:
        names |= {f"graphprune/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / link).rglob("*.py")}
    return names


def test_the_links_are_links() -> None:
    for name in LINKED:
        assert (ROOT / "graphprune" / name).is_symlink(), (
            f"graphprune/{name} is no symbolic link in this clone, so `pip install -e .` cannot work here "
            "(`pip install .` does). On Windows switch on developer mode, then run "
            "`git config core.symlinks true && git checkout -- graphprune`"
        )
        assert (ROOT / "graphprune" / name / "__init__.py").samefile(ROOT / name / "__init__.py")


def test_the_wheel_holds_every_module_once(wheel: Path) -> None:
    names = Counter(n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".py"))
    assert set(names) == source_modules()
    assert set(names.values()) == {1}


def test_the_wheel_is_typed_and_licensed(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "graphprune/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_holds_the_templates_of_pages(wheel: Path) -> None:
    folder = ROOT / "graphprune" / "display" / "templates"
    wanted = {f"graphprune/display/templates/{path.name}" for path in folder.iterdir()}
    assert wanted and wanted <= set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_all_that_a_page_is_made_of(wheel: Path) -> None:
    assets = [p for p in (ROOT / "graphprune" / "reports" / "viewer" / "assets").rglob("*") if p.is_file()]
    assert assets
    assert {p.relative_to(ROOT).as_posix() for p in assets} <= set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_imports_from_another_place(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import graphprune.passes, graphprune.frontends, graphprune.exporters as e; print(e.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


def test_the_sdist_builds_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [n for n in archive.getnames() if n.endswith(".py")]
        archive.extractall(tmp_path, filter="data")
    assert max(Counter(names).values()) == 1
    again = build("wheel", next(tmp_path.iterdir()), tmp_path / "dist")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_the_top_folder_is_tidy() -> None:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {name.split("/")[0] for name in listed} == TOP


def test_every_requirement_is_pinned_in_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    others = [requirement for requirement in listed if not requirement.startswith("graphprune[")]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert [w for w in others if w.split(">=")[0] not in pins] == []


@pytest.mark.parametrize(
    "name",
    ["tools/setup", "tools/test", "tools/demo", "tools/verify_web", "tools/vendor_page", "tools/clients", ".ci/run"],
)
def test_the_commands_can_be_run(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    assert subprocess.run(["bash", "-n", str(ROOT / name)], check=False).returncode == 0
