"""Neighbors load what graphprune wrote; the table says so, or why not."""

from pathlib import Path

import pytest

from tools.neighbors import run
from tools.neighbors.run import Row, table


def test_a_table_tells_what_does_not_hold() -> None:
    rows = [Row("peft", "1.0", 2e-7), Row("torchao", "2.0", 0.5), Row("onnxslim", fault="ImportError: no x")]
    text = table(rows).splitlines()
    assert [row.holds for row in rows] == [True, False, False]
    assert "| 2.0e-07 |" in text[2] and "5.0e-01, more than 1e-01" in text[3] and "ImportError: no x" in text[4]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["peft", "lm-eval"])
def test_a_neighbor_has_the_numbers(name: str, folder: Path, tmp_path: Path) -> None:
    """An adapter is trained and merged; accuracies on the same questions are equal to the last digit."""
    run.prepare(folder, tmp_path / "models")
    row = run.examine(name, tmp_path / "models", tmp_path / "packages")
    if "cannot be installed" in row.fault:
        pytest.skip(row.fault)
    assert row.holds, row
