"""Several processes on one job: the same plan, and the same weights within rounding, as one process comes to."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from graphprune.statistics.moments import Drift, Moments
from graphprune.support import distributed

ONE = (sys.executable,)
TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def test_one_process_has_it_all() -> None:
    own = [torch.ones(2, dtype=torch.float64)]
    assert (distributed.world_size(), distributed.rank(), list(distributed.batches_of_process(3))) == (1, 0, [0, 1, 2])
    assert distributed.all_reduce_sum(own, 1) == own and distributed.all_reduce_sum(None, 3) is None
    assert Moments.all_reduced(None) is None and Drift.all_reduced(None) is None


def prune(start: Sequence[str], folder: Path, text: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    options = ("--sparsity", "0.2", "--samples", "24", "--length", "8", "--align", "1", "--output", str(output))
    words = (*start, "-m", "graphprune", "prune", str(folder), *options, "--calibration", str(text), *more)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("recipe", ["fasp", pytest.param("goa", marks=pytest.mark.slow)])
def test_two_processes_come_to_what_one_does(recipe: str, folder: Path, text: Path, tmp_path: Path) -> None:
    for start, name in ((ONE, "one"), (TWO, "two")):
        done = prune(start, folder, text, tmp_path / name, "--recipe", recipe)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("pruned into") == 1, "only the first process answers"
    plans = [(tmp_path / name / "plan.json").read_bytes() for name in ("one", "two")]
    assert plans[0] == plans[1]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
