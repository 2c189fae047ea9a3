"""Options from a file: what a run wrote repeats it, flags win, and a mistake is one error that names the place."""

import json
import shlex
from pathlib import Path
from typing import Any, Never

import pytest
import torch
import yaml
from typer.testing import CliRunner

from graphprune.cli.commands import app
from graphprune.workflows.options import PruneOptions, SensitivityOptions
from graphprune.workflows.runs import run_file


class Captured:
    """A function that notes its options and does nothing else."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def __call__(self, **options: Any) -> Never:
        self.options = options
        raise KeyboardInterrupt


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})
    return done.exit_code, done.stdout, done.stderr


def test_a_run_is_repeated_from_its_file(
    folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    more = shlex.split(
        "--sparsity 0.2 --samples 8 --length 16 --protect *.0.* --inexact --plan-only --destination free"
    )
    first = (
        "prune",
        folder.name,
        "--recipe",
        "magnitude",
        "--calibration",
        str(text),
        *more,
        "--output",
        str(tmp_path / "out"),
        "--json",
    )
    status, out, told = run(*first)
    assert status == 0, told
    made, file = json.loads(out), tmp_path / "out" / "run.yaml"
    table = yaml.safe_load(file.read_text())
    assert table["model"] == str(folder) and table["protect"] == ["*.0.*"] and not table["exact_only"]
    assert table.keys() == made["options"].keys() - {"output"}
    assert made["options"]["model"] == folder.name and made["options"]["plan_only"] is True
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["graphprune"])
    again = ("prune", "--config", "out/run.yaml", "--json", "--output")
    status, out, told = run(*again, "again")
    assert status == 0, told
    assert json.loads(out)["plan"] == made["plan"]
    assert (tmp_path / "again" / "run.yaml").read_text() == file.read_text()
    monkeypatch.setattr("graphprune.api.prune", captured := Captured())
    assert run(*shlex.split(json.loads(out)["command"])[1:])[0] == 130
    assert PruneOptions(**captured.options) == PruneOptions(**table, output="again")
    assert run(*again, "other", "--sparsity", "0.3", "--exact-only", "--no-plan-only")[0] == 130
    assert captured.options == {**table, "output": "other", "sparsity": 0.3, "exact_only": True, "plan_only": False}


WRONG = [
    ("sparsty: 0.2", "run.yaml: no option 'sparsty'; did you mean sparsity?"),
    ("zzz: 1", "run.yaml: no option 'zzz'; see --help of the command"),
    ("sparsity: many", "run.yaml: sparsity must lie between 0 and 1 (0.2 is 20 %), got 'many'"),
    ("samples: 0.5", "run.yaml: samples must be a positive whole number, got 0.5"),
    ("protect: lm_head*", 'run.yaml: protect must be a sequence: write protect: ["lm_head*"]'),
    ("plan-only: maybe", "run.yaml: plan_only must be true or false, got 'maybe'"),
    ("batches: []", "run.yaml: batches cannot be in a file; set it from Python"),
    ("- sparsity", "run.yaml holds no options by name; write one a line, as in sparsity: 0.2"),
    ("recipe: fasp\nsparsity: [", "run.yaml: line 3 is not YAML; write one option a line, as in sparsity: 0.2"),
]


@pytest.mark.parametrize(("content", "message"), WRONG)
def test_a_mistake_is_one_error(content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(content + "\n")
    status, out, told = run("prune", "model", "--sparsity", "0.2", "--output", "out", "--config", "run.yaml")
    assert (status, out, told) == (2, "", f"error: {message}\n")


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    status, _, told = run(
        "prune", "model", "--sparsity", "0.2", "--output", "out", "--config", str(tmp_path / "no.yaml")
    )
    assert (status, told) == (
        2,
        f"error: cannot read the options in {tmp_path / 'no.yaml'} (reason: no such file or directory)\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune",), "MODEL is missing; set it on the command line, or in a file (--config FILE)"),
        (("prune", "model", "--sparsity", "0.2"), "--output is missing"),
        (
            ("prune", "model", "--output", "out"),
            "--sparsity, --macs, --latency, --ratio, --widths, --drop, --drop-experts, --drop-b",
        ),
        (("sensitivity", "model", "--output", "out"), "--text is missing"),
    ],
)
def test_what_is_missing_is_named(arguments: tuple[str, ...], message: str) -> None:
    status, out, told = run(*arguments)
    assert (status, out) == (2, "")
    assert told.startswith(f"error: {message}")


def test_another_command_reads_a_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphprune.api.sensitivity", captured := Captured())
    file = tmp_path / "run.yaml"
    file.write_text("model: model\ntext: pydoc\noutput: table.json\nratios: [0.1, 0.5]\nsamples: 8\n")
    assert run("sensitivity", "--config", str(file), "--samples", "16", "--ratios", "0.25")[0] == 130
    assert captured.options == {
        "model": "model",
        "text": "pydoc",
        "output": "table.json",
        "ratios": (0.25,),
        "samples": 16,
    }
    assert run_file.read(file, SensitivityOptions)["ratios"] == [0.1, 0.5]


def test_what_only_python_can_give_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("w1")
    options = PruneOptions(
        "mine:make", output="out", ratio=0.5, batches=[((torch.ones(1),), {})], calibration="words.txt[0:5]"
    )
    (tmp_path / "run.yaml").write_text(run_file.text(options))
    notes = [line for line in run_file.text(options).splitlines() if "It also had" in line]
    assert notes == ["# It also had batches from Python, which cannot be in a file."]
    given = run_file.read(tmp_path / "run.yaml", PruneOptions)
    assert given["calibration"] == str(tmp_path / "words.txt[0:5]") and given["model"] == "mine:make"
    assert PruneOptions(**given, output="again").ratio == 0.5
    assert run_file.anywhere("pydoc") == "pydoc"
