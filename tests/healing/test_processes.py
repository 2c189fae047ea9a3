"""Two processes train on the shares of each step as one trains on all of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import graphprune as gp

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(folder: Path, text: Path, tmp_path: Path) -> None:
    options = ["--tokens", "1k", "--length", "16", "--batch", "8", "--held-out", "4", "--evaluations", "2"]
    words = ["heal", str(folder), "--data", str(text), *options, "--rate", "0.002"]
    wrong = {name: os.environ[name] for name in os.environ if not name.startswith("TORCHELASTIC")}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "graphprune", *words, "--output",
         str(tmp_path / "two")],
        env={**wrong, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
    gp.heal(
        folder, data=[text], tokens="1k", length=16, batch=8, held_out=4, evaluations=2, rate=0.002,
        output=tmp_path / "one",
    )  # fmt: skip
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    before = load_file(folder / "model.safetensors")
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    assert all(not torch.allclose(one[name], before[name], atol=1e-4) for name in one)
