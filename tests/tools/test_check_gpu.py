"""The check of a CUDA device says so where there is none, and runs the same steps on the processor."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tools import check_gpu
from tools.check_gpu import Row, _rows_or_fault


def test_without_a_device_one_line_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="^no CUDA device is at hand, so nothing was checked; --device cpu") as line:
        check_gpu.main([])
    assert "\n" not in str(line.value)


def test_a_step_that_fails_is_a_row_after_those_before() -> None:
    def broken() -> Iterator[Row]:
        yield "first", "1", "2"
        raise RuntimeError("CUDA error: out of memory\nmore")

    rows = list(_rows_or_fault(broken))
    assert rows[0] == ("first", "1", "2") and rows[1][0] == "broken" and "out of memory" in rows[1][2]


@pytest.mark.slow
def test_all_steps_run_on_the_processor(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = "--samples 4 --length 32 --windows 2 --tokens 256 --batch 2 --prompt 16 --repeats 2"
    check_gpu.main([*small.split(), "--device", "cpu", "--model", str(folder), "--work", str(tmp_path)])
    output = capsys.readouterr().out
    lines = output.splitlines()
    assert "failed" not in output and lines[0] == "| the processor | dense | pruned |"
    assert {"prune", "parameters", "export onnx-gpu"} < {line.split(" | ")[0].strip("| ") for line in lines}
    assert any("tokens a second" in line for line in lines) and "ms (" in output
