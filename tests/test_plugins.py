"""A package outside the tree adds a score, a refit and a recipe, and is used by name."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import graphprune as gp
from graphprune.planning.plan import Plan
from tests.processes import run

PLUGIN = Path(__file__).parent / "plugin"
MINE = """
import torch
from torch import nn

def make():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    module[2].weight.data = torch.arange(8.0)[None]
    return module, (torch.ones(2, 4),), {}

def batches():
    return [torch.randn(6, 4) for _ in range(3)]
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel of the example package is installed."""
    into = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(into)]
    built = subprocess.run(command, cwd=PLUGIN, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    target = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(next(into.iterdir())).extractall(target)
    return target


def start(installed: Path, *words: object) -> "subprocess.CompletedProcess[str]":
    """Run Python with the package on its path."""
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_score_and_a_refit_are_used_by_name(installed: Path, tmp_path: Path) -> None:
    (installed / "mine.py").write_text(MINE)
    words = ["--data", "mine:batches", "--ratio", "0.5", "--align", "1", "--score", "alternating"]
    output = ["--refit", "halved", "--output", str(tmp_path / "out")]
    done = run("prune", "mine:make", *words, *output, folder=installed)
    assert done.returncode == 0, done.stderr
    plan, small = Plan.load(tmp_path / "out" / "plan.json"), gp.load(tmp_path / "out")
    assert plan.made_by["score"] == "alternating"
    assert plan.groups["0.weight:0"] == ((0, 2, 4, 6),)
    assert small.weights["2.weight"].tolist() == [[0, 1, 2, 3]]


def test_a_recipe_is_listed(installed: Path) -> None:
    done = run("recipes", "--json", folder=installed)
    assert done.returncode == 0, done.stderr
    recipe = json.loads(done.stdout)["example"]
    assert recipe["score"] == "alternating" and recipe["needs"] == ["calibration"]


def test_a_plug_in_is_loaded_before_the_first_look_into_a_registry(installed: Path) -> None:
    code = """
import sys, graphprune as gp
gp.Program
assert "graphprune_example" not in sys.modules
gp.Pipeline.parse("analyze | score{by=alternating}")
assert "graphprune_example" in sys.modules
"""
    done = start(installed, "-c", code)
    assert done.returncode == 0, done.stderr


def test_a_broken_plug_in_is_named_in_one_line(installed: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(installed, tmp_path / "broken"))
    (broken / "graphprune_example.py").write_text("import no_such_module\n")
    done = run("recipes", folder=broken)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: plug-in graphprune_example of graphprune-example 1.5 cannot be imported")
    assert line.endswith("repair or uninstall it") and "no_such_module" in line
