"""Neighbors load what graphprune wrote; the table says so, or why not."""

from pathlib import Path

import pytest
import torch

from tools.neighbors import run
from tools.neighbors.neighbor import Neighbor, difference
from tools.neighbors.run import Row, table


def test_a_table_tells_what_does_not_hold() -> None:
    rows = [Row("peft", "1.0", 2e-7), Row("torchao", "2.0", 0.5), Row("onnxslim", fault="ImportError: no x")]
    text = table(rows).splitlines()
    assert [row.holds for row in rows] == [True, False, False]
    assert "| 2.0e-07 |" in text[2] and "5.0e-01, more than 1e-01" in text[3] and "ImportError: no x" in text[4]


def test_differences_count_shapes_and_numbers() -> None:
    """A NaN, or logits of other shapes, are no small difference."""
    ones = torch.ones(2, 3)
    assert difference(1.5 * ones, 2 * ones) == 0.25
    for wrong in (torch.ones(3), torch.full((2, 3), torch.nan)):
        with pytest.raises(ValueError, match="expected are finite ones of shape \\(2, 3\\)"):
            difference(wrong, ones)


def test_programs_of_node_need_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Node, and with packages that no registry has, the row has the reason and no folder is left."""
    monkeypatch.setenv("PATH", str(tmp_path))
    row = run.examine("transformers.js", tmp_path, tmp_path / "packages")
    assert row.fault == "cannot be installed: node and npm are not on PATH" and not row.holds
    assert run._install(Neighbor(("no such name",), "", lambda place: 0.0), tmp_path / "packages")
    assert not (tmp_path / "packages").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["peft", "lm-eval", "optimum-onnx", "openvino", "transformers.js"])
def test_a_neighbor_has_the_numbers(name: str, folder: Path, tmp_path: Path) -> None:
    """An adapter is trained and merged; accuracies on the same questions are equal to the last digit; logits agree."""
    run.prepare(folder, tmp_path / "models")
    row = run.examine(name, tmp_path / "models", tmp_path / "packages")
    if "cannot be installed" in row.fault:
        pytest.skip(row.fault)
    assert row.holds, row
