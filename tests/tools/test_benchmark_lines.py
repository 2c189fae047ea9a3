"""The lines of the examples are counted as a reader counts them, and every task has both files."""

import ast
import sys
from pathlib import Path

import pytest

from tools.benchmark_lines import FOLDER, TASKS, TOOLS, Example, _cells, lines_of, measured
from tools.examples.small_cnn import SmallCNN, stripes


def test_only_code_of_the_body_counts(tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text(
        'import os\n\n\ndef run(model, loader, loss):\n    """Doc."""\n    # why\n    a = os.fspath(\n        model\n'
        "    )\n\n    return a  # done\n"
    )
    assert lines_of(file) == 4


def test_every_task_has_an_example_of_each_tool_and_ours_is_shorter() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert files == {f"{task}_{tool}" for task in TASKS for tool in TOOLS}
    for task in TASKS:
        ours, theirs = (FOLDER / f"{task}_{tool}.py" for tool in TOOLS)
        assert lines_of(ours) < lines_of(theirs)
        assert ast.get_docstring(ast.parse(theirs.read_text()))


def test_an_example_without_its_package_is_counted_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert measured("one_shot", "torch_pruning", None, None, None) == Example(5)
    assert _cells(Example(5)) == "5 | - | -"


@pytest.mark.parametrize("task", ["layer_ratios", pytest.param("iterative", marks=pytest.mark.slow)])
def test_ours_runs(task: str) -> None:
    model = SmallCNN()
    result = measured(task, "graphprune", model, stripes(128, seed=0), stripes(128, seed=1))
    assert result.share is not None and result.share == pytest.approx(
        0.16 if task == "layer_ratios" else 0.26, abs=0.02
    )
