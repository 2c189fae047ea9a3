"""The command line prunes a user's own module with the user's data, loss and metric."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cli.test_cli import run

MINE = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy

x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval(), (x[:8],), {}

def loader():
    return list(zip(x.split(8), x[:, :3].argmax(1).split(8)))

def loss(output, batch):
    return cross_entropy(output, batch[1])

def accuracy(output, batch):
    return (output.argmax(1) == batch[1]).float().mean()
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mine_with_data.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("graphprune.workflows.free_destination._export", lambda program, folder: ("ONNX", 0.0))
    yield tmp_path
    sys.modules.pop("mine_with_data", None)


def test_a_run_with_own_data_is_repeated_by_its_file(mine: Path) -> None:
    own = [word for name, value in (("data", "loader"), ("loss", "loss"), ("metric", "accuracy"))
           for word in (f"--{name}", f"mine_with_data:{value}")]  # fmt: skip
    status, out, errors = run("prune", "mine_with_data:make", *own, "--ratio", "0.5", "--align", "1", "--output", "out")
    assert status == 0, errors
    line = next(line for line in out.splitlines() if "accuracy on the data of the run" in line)
    assert "before" in line and "after" in line
    table = yaml.safe_load((mine / "out" / "run.yaml").read_text())
    assert (table["data"], table["recipe"], table["destination"]) == ("mine_with_data:loader", "auto", None)
    status, out, errors = run("prune", "--config", "out/run.yaml", "--output", "again", "--json")
    assert status == 0, errors
    reports = [json.loads((mine / name / "report.json").read_text()) for name in ("out", "again")]
    assert json.loads(out)["metrics"] == reports[0]["metrics"] == reports[1]["metrics"]
    assert reports[0]["plan"] == reports[1]["plan"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine_with_data:nothing", "cannot find mine_with_data:nothing"),
        ("mine_with_data:x", "metric must be a function, and mine_with_data:x is a Tensor"),
        ("accuracy", "metric must be a function, or the name package.module:name, got 'accuracy'"),
    ],
)
def test_an_object_that_is_none(name: str, message: str, mine: Path) -> None:
    more = ("--data", "mine_with_data:loader", "--metric", name, "--ratio", "0.5", "--output", "out")
    status, out, errors = run("prune", "mine_with_data:make", *more)
    assert (status, out) == (2, "") and message in errors
