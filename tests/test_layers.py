"""Imports go downward, files and functions stay small, and no architecture is known by name."""

import ast
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("graphprune", "passes", "frontends", "exporters", "tools", "tests")
ARCHITECTURES = re.compile(
    r"(?i:(?<![a-z])(?:llama|mistral|mixtral|qwen|gemma|falcon|bloom|smollm|phi-?[0-9]|gpt-?2|gpt-?neo|opt-?[0-9]|t5|bert|"
    r"vit|swin|whisper|mamba|convnext|resnet|mobilenet)(?![a-z]))|(?:Llama|Bert|OPT|GPT|ViT|ResNet|Qwen2?)[A-Z][a-z]"
)


def sources(*folders: str) -> list[Path]:
    """The Python files of the folders, each once: the links in graphprune are not followed."""
    files = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in files if not any(parent.is_symlink() for parent in path.parents))


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_imports_go_downward() -> None:
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("import-linter is not installed beside this Python")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", sources(*FOLDERS), ids=label)
def test_files_and_functions_are_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400, f"{label(path)} has more than 400 lines: split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 50, f"{label(path)}: {node.name} has more than 50 lines"


def test_folders_are_small() -> None:
    counts = Counter(path.parent for path in sources("graphprune", "passes", "exporters") if path.name != "__init__.py")
    large = {label(folder): count for folder, count in counts.items() if count > 16}
    assert large.keys() <= {"passes/operators", "passes/scores"}, large  # which hold a method in each file


@pytest.mark.parametrize("path", sources("graphprune", "passes"), ids=label)
def test_no_architecture_is_known_by_name(path: Path) -> None:
    found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if ARCHITECTURES.search(line)]
    assert found == [], f"{label(path)} names an architecture"


def test_the_axis_algebra_needs_no_torch() -> None:
    imported = set()
    for name in ("axes/algebra.py", "axes/index_sets.py", "errors.py"):
        for node in ast.walk(ast.parse((ROOT / "graphprune" / name).read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
    assert imported <= {*sys.stdlib_module_names, "graphprune"}
