"""Flags of logging, before and behind the name of a command, in processes of their own."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from graphprune.cli.logs import flags_first
from tests.processes import run

ROOT = Path(__file__).parents[2]
PRUNE = ("prune", "made:make", "--recipe", "magnitude", "--sparsity", "0.2", "--destination", "free", "--output", "out")
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


def started(*words: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """The command, in a process that imports everything anew."""
    known = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "graphprune", *words]
    return subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "made.py").write_text(
        "import logging, torch\n"
        "def make():\n"
        "    logging.getLogger('graphprune.test').warning('a warning')\n"
        "    module = torch.nn.Sequential(torch.nn.Linear(4, 80), torch.nn.ReLU(), torch.nn.Linear(80, 2))\n"
        "    return module, (torch.randn(3, 4),), {}\n"
        "def broken():\n"
        "    raise ValueError('no data')\n"
    )
    return tmp_path


def test_quiet_and_a_file_with_everything(place: Path) -> None:
    """Flags stand before or behind the command."""
    done = run("-q", *PRUNE, "--log-file", "run.log", folder=place)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "made:make pruned into out" in done.stdout
    logged = (place / "run.log").read_text()
    assert re.search(rf"^{TIME} WARNING graphprune\.test: a warning$", logged, re.M)
    assert re.search(rf"^{TIME} INFO graphprune\.pipeline: rewrite: \d+\.\d s$", logged, re.M)
    assert re.search(rf"^{TIME} DEBUG graphprune\.pipeline: score\{{by=magnitude\}} begins$|score begins", logged, re.M)


def test_verbose_logs_passes_with_seconds(place: Path) -> None:
    done = run(*PRUNE, "-v", folder=place)
    assert done.returncode == 0
    passes = re.findall(r"^([a-z-]+): \d+\.\d s$", done.stderr, re.M)
    assert [name for name in passes if name != "reach"] == [
        "analyze", "score", "allocate", "select", "rewrite", "verify",
    ]  # fmt: skip
    assert "a warning" in done.stderr and "begins" not in done.stderr


def test_without_flags_there_are_warnings_only_and_errors_reach_the_file(place: Path) -> None:
    done = run("--log-file", "run.log", "inspect", "made:broken", folder=place)
    assert done.returncode == 2
    assert done.stderr == "error: made:broken failed with ValueError when called without arguments (reason: no data)\n"
    logged = (place / "run.log").read_text()
    assert "DEBUG graphprune.cli: stopped by an error" in logged and "Traceback" in logged and "no data" in logged
    done = run("inspect", "made:make", folder=place)
    assert (done.returncode, done.stderr) == (0, "a warning\n")


def test_a_log_that_cannot_be_written(place: Path) -> None:
    done = run("inspect", "made:make", "--log-file", "no/such/run.log", folder=place)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "cannot write no/such/run.log (reason: no such file or directory)" in " ".join(
        re.sub("[│╭╮╰╯─]", "", done.stderr).split()
    )


def test_flags_come_first() -> None:
    assert flags_first(["prune", "m", "-q", "--log-file", "f", "--seed", "1", "-vv", "--log-file=g", "--", "-q"]) == [
        "-q", "--log-file", "f", "-vv", "--log-file=g", "prune", "m", "--seed", "1", "--", "-q",
    ]  # fmt: skip
    assert flags_first(["prune", "--log-file"]) == ["prune", "--log-file"]


@pytest.mark.parametrize("package", ["typer", "torch"])
def test_an_interrupt_during_start_up_is_one_line(package: str, place: Path) -> None:
    (place / f"{package}.py").write_text(
        "import os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"os.kill(os.getpid(), {int(signal.SIGINT)})\n"
        "signal.pause()\n"
    )
    done = started("inspect", "made:make", folder=place)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted: no output was written\n")
