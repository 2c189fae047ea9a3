"""The command line: clean answers on standard output, one readable message on standard error."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never

import pytest
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from graphprune.cli.commands import app
from graphprune.errors import GraphpruneError
from graphprune.reports.report import Report
from graphprune.version import __version__
from tests.processes import run as forked

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "inspect": ("--dot", "--graphml", "--graph-json", "--sensitivity", "--parameter", "--json"),
    "view": ("--plan", "--report", "--sensitivity", "--output", "--force", "--json"),
    "prune": (
        "--recipe", "--sparsity", "--ratio", "--calibration", "--samples", "--length", "--align", "--destination",
        "--protect", "--inexact", "--seed", "--budget", "--latency", "--runtime", "--trials", "--shots", "--coarse",
        "--sensitivity", "--evaluate", "--windows", "--autocast", "--target", "--device", "--memory", "--scratch",
        "--restart", "--plan-only", "--output", "--force", "--config", "--json",
    ),
    "sensitivity": (
        "--text", "--output", "--plot", "--recipe", "--ratios", "--refit", "--samples", "--length", "--destination",
        "--protect", "--inexact", "--seed", "--force", "--config", "--json",
    ),
    "apply": ("--output", "--force", "--json"),
    "eval": ("--text", "--length", "--windows", "--json"),
    "ask": ("--questions", "--first", "--json"),
    "verify": ("--json",),
    "export": ("--target", "--output", "--force", "--json"),
    "compare": ("--output", "--force", "--json"),
    "recipes": ("--json",),
}  # fmt: skip
PRUNE = ("prune", "some/model", "--sparsity", "0.2", "--output", "out")


@dataclass
class Result:
    """What a one-call function returns."""

    report: object


REPORT = Report(
    model="some/model", recipe="fasp", destination="stock", parameters_before=1000, parameters_after=800,
    sparsity_asked=0.2, plan="cafe", program="beef", errors={"a against b": float("nan")},
)  # fmt: skip


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1", **environment})
    return done.exit_code, done.stdout, done.stderr


def fake(monkeypatch: pytest.MonkeyPatch, name: str, does: Callable[..., Any]) -> None:
    monkeypatch.setattr(f"graphprune.api.{name}", does)


def raises(fault: BaseException) -> Callable[..., Never]:
    def does(*args: object, **kwargs: object) -> Never:
        raise fault

    return does


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a module `mine`, whose `make` makes a model."""
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "print('user code talks')\n"
        "def make():\n"
        "    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))\n"
        "    return module, (torch.randn(3, 4),), {}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.mark.parametrize(("name", "options"), COMMANDS.items())
def test_every_command_explains_every_flag(name: str, options: tuple[str, ...]) -> None:
    status, out, _ = run(name, "--help")
    assert status == 0
    for option in options:
        line = next(line for line in out.splitlines() if option in line)
        assert len(line.replace(option, "").strip(" │*|")) > 10, f"{option} has no help text"


def test_the_version_is_told() -> None:
    assert run("--version") == (0, f"graphprune {__version__}\n", "")


def test_prune_passes_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def prune(model: str, **options: object) -> Result:
        seen.update(options, model=model)
        return Result(REPORT)

    fake(monkeypatch, "prune", prune)
    more = (
        "--recipe", "magnitude", "--calibration", "text.txt", "--samples", "4", "--length", "64", "--align", "16",
        "--destination", "per-layer", "--protect", "a*", "--protect", "b*", "--inexact", "--seed", "7",
        "--budget", "macs", "--latency", "t.json", "--runtime", "torch", "--trials", "5", "--shots", "3",
        "--coarse", "0.5", "--autocast", "--target", "onnx", "--sensitivity", "s.json", "--evaluate", "a.txt",
        "--evaluate", "b.txt", "--windows", "9", "--plan-only", "--force",
        "--device", "cuda", "--memory", "4GiB", "--scratch", "s", "--restart",
    )  # fmt: skip
    status, out, _ = run(*PRUNE, *more)
    assert status == 0
    assert "800" in out
    assert seen == {
        "model": "some/model", "recipe": "magnitude", "sparsity": 0.2, "calibration": "text.txt", "output": "out",
        "samples": 4, "length": 64, "autocast": True, "align": 16, "destination": "per-layer", "protect": ("a*", "b*"),
        "exact_only": False, "seed": 7, "budget": "macs", "latency": "t.json",
        "runtime": "torch", "trials": 5, "shots": 3, "coarse": 0.5, "target": "onnx", "plan_only": True, "force": True,
        "device": "cuda", "memory": "4GiB", "scratch": "s", "restart": True,
        "sensitivity": "s.json", "evaluate": ("a.txt", "b.txt"), "windows": 9,
    }  # fmt: skip


def test_json_is_all_that_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    def prune(model: str, **options: object) -> Result:
        sys.stdout.write("a library talks\n")
        return Result(REPORT)

    fake(monkeypatch, "prune", prune)
    status, out, told = run(*PRUNE, "--json")
    assert status == 0
    table = json.loads(out)
    assert table["parameters_after"] == 800
    assert table["errors"] == {"a against b": None}
    assert "a library talks" in told


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (GraphpruneError("sparsity is 3, expected\nless than 1"), "error: sparsity is 3, expected\nless than 1\n"),
        (PermissionError(13, "Permission denied", "out"), "error: out: Permission denied\n"),
        (OSError(28, "No space left on device"), "error: No space left on device\n"),
        (
            ZeroDivisionError("odd"),
            "error: an unexpected ZeroDivisionError stopped the command (reason: odd)\nSet GRAPH",
        ),
    ],
)
def test_an_error_is_one_message(monkeypatch: pytest.MonkeyPatch, fault: Exception, words: str) -> None:
    fake(monkeypatch, "prune", raises(fault))
    for more in ((), ("--json",)):
        status, out, told = run(*PRUNE, *more)
        assert (status, out) == (2, "")
        assert told.startswith(words)
        assert "Traceback" not in told


def test_the_traceback_is_there_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "prune", raises(ZeroDivisionError("odd")))
    status, _, told = run(*PRUNE, GRAPHPRUNE_DEBUG="1")
    assert status == 2
    assert "Traceback" in told


def test_an_interrupt_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "prune", raises(KeyboardInterrupt()))
    assert run(*PRUNE) == (130, "", "interrupted: no output was written\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("prune", "model", "--output", "out"),
        ("prune", "model", "--sparsity", "many", "--output", "out"),
        ("prune", "model", "--sparsity", "0.2", "--output", "out", "--destination", "moon"),
        ("prune", "model", "--sparsity", "0.2", "--output", "out", "--samples", "0"),
        ("export", "dir", "--output", "out"),
        ("no-such-command",),
    ],
)
def test_wrong_usage_is_told_with_status_2(arguments: tuple[str, ...]) -> None:
    status, out, told = run(*arguments)
    assert (status, out) == (2, "")
    assert "error" in told.lower()


@pytest.mark.parametrize("value", ["0", "1", "-0.5", "1.5", "nan", "inf"])
def test_a_sparsity_outside_is_refused(value: str, mine: Path) -> None:
    more = ("--recipe", "magnitude", "--destination", "free", "--output", "out")
    status, out, told = run("prune", "mine:make", f"--sparsity={value}", *more)
    assert (status, out) == (2, "")
    assert "sparsity" in told.splitlines()[-1]
    assert "unexpected" not in told
    assert not (mine / "out").exists()


@pytest.mark.parametrize("arguments", [("inspect", "no/such/model"), ("verify", "no/such/folder")])
def test_a_missing_model_is_named(arguments: tuple[str, ...]) -> None:
    status, out, told = run(*arguments)
    assert (status, out) == (2, "")
    assert "no/such" in told


def test_an_existing_output_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    status, _, told = run("prune", "no/such/model", "--sparsity", "0.2", "--output", str(tmp_path / "out"))
    assert status == 2
    assert "--force" in told


def test_recipes_are_listed() -> None:
    status, out, _ = run("recipes", "--json")
    assert status == 0
    assert {"fasp", "magnitude", "random"} <= set(json.loads(out))
    shown = run("recipes")[1]
    assert "fasp" in shown and "gradients" in shown and "2312.11983" in shown


def test_a_callable_is_inspected_and_drawn(mine: Path) -> None:
    status, out, told = run("inspect", "mine:make", "--dot", "g.dot", "--graphml", "g.xml", "--json")
    assert status == 0, told
    table = json.loads(out)
    assert [(group["size"], group["exact"]) for group in table["groups"]] == [(8, True)]
    assert table["pinned"]
    assert (mine / "g.dot").read_text().startswith("digraph")
    assert "graphml" in (mine / "g.xml").read_text()
    assert "0.bias" in (mine / "g.dot").read_text()
    assert "8" in run("inspect", "mine:make")[1]


def test_a_model_goes_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained("model")
    arguments = ("prune", "model", "--recipe", "magnitude", "--sparsity", "0.3", "--align", "1")
    status, out, told = run(*arguments, "--output", "out", "--json")
    assert status == 0, told
    report = json.loads(out)
    assert report == json.loads(Path("out/report.json").read_text())
    assert report["sparsity_reached"] == pytest.approx(0.3, abs=0.01)
    assert json.loads(run("inspect", "out", "--json")[1])["parameters"] == report["parameters_after"]
    assert json.loads(run("verify", "out", "--json")[1])["parameters"] == report["parameters_after"]
    planned = json.loads(run(*arguments, "--plan-only", "--output", "plan", "--json")[1])
    assert (planned["plan"], planned["parameters_after"]) == (report["plan"], report["parameters_after"])
    assert (
        json.loads(run("apply", "model", "plan/plan.json", "--output", "again", "--json")[1])["plan"] == report["plan"]
    )
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()
    before = sorted(Path("out").iterdir())
    status, _, told = run(*arguments, "--output", "out")
    assert (status, "pass --force" in told) == (2, True)
    status, _, told = run("apply", "out", "plan/plan.json", "--output", "out", "--force")
    assert (status, "another model" in told) == (2, True)
    assert sorted(Path("out").iterdir()) == before


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_request_to_stop_is_heard(name: str, tmp_path: Path) -> None:
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # which a job in the background ignores
    stop = f"os.kill(os.getpid(), signal.{name})"
    code = f"import os, signal\ndef make():\n    {heard}\n    {stop}\n    signal.pause()\n"
    (tmp_path / "stopped.py").write_text(code)
    options = ("--recipe", "magnitude", "--sparsity", "0.2", "--destination", "free", "--output", "out")
    done = forked("prune", "stopped:make", *options, folder=tmp_path)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.endswith("interrupted: no output was written\n")
    assert not (tmp_path / "out").exists()


def test_questions_are_asked(folder: Path, tmp_path: Path) -> None:
    lines = [{"context": "w3 w4", "choices": ["w5", "w6 w7"], "label": i % 2} for i in range(3)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    status, out, _ = run("ask", str(folder), "--questions", str(tmp_path / "q.jsonl"), "--first", "2", "--json")
    found = json.loads(out)
    assert (status, found["questions"], found["acc"], sum(found["right"])) == (0, 2, 0.5, 1)
    assert "acc norm" in run("ask", str(folder), "--questions", str(tmp_path / "q.jsonl"))[1]
