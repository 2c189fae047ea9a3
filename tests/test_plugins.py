"""A package outside the tree adds a score, a refit and a recipe, and is used by name."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import graphprune as gp
from graphprune.planning.plan import Plan
from tests.processes import run

PLUGIN = Path(__file__).parent / "plugin"


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


def test_a_score_and_a_refit_are_used_by_name(installed: Path, folder: Path, text: Path, tmp_path: Path) -> None:
    options: list[Any] = ["--calibration", text, "--samples", 4, "--length", 8, "--sparsity", 0.1, "--align", 1]
    words = ["--score", "alternating", "--refit", "halved", "--destination", "per-layer", "--output", tmp_path / "out"]
    done = run("prune", *map(str, (folder, *options, *words)), folder=installed)
    assert done.returncode == 0, done.stderr
    plan, dense, small = Plan.load(tmp_path / "out" / "plan.json"), gp.load(folder), gp.load(tmp_path / "out")
    assert plan.made_by["score"] == "alternating"
    name, ((*kept,),) = next(
        (name, rows) for name, rows in plan.groups.items() if name.startswith("model.layers.0.mlp")
    )
    size = dense.fact(gp.Dependencies).by_name[name].size
    assert kept == sorted([*range(0, size, 2), *range(1, size, 2)][: len(kept)])
    down = "model.layers.0.mlp.down_proj.weight"
    assert small.weights[down].equal(dense.weights[down][:, kept] / 2)


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
    (tmp_path / "graphprune_example.py").write_text("import no_such_module\n")
    done = start(tmp_path, "-c", "")
    assert done.returncode == 0
    broken = f"{tmp_path}{os.pathsep}{installed}"
    done = start(Path(broken), "-m", "graphprune", "recipes")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: plug-in graphprune_example of graphprune-example 1.5 cannot be imported")
    assert line.endswith("repair or uninstall it") and "no_such_module" in line
