"""Sensitivities as a user asks for them: a table, a picture, and a plan that follows."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import graphprune as gp
from graphprune.cli.commands import app
from graphprune.errors import CalibrationError, ExportError, PlanError, WorkspaceError
from graphprune.evaluation.masked_loss import Objective
from graphprune.reports import heatmap
from tests.processes import Forked, Stop

SMALL: dict[str, Any] = {"samples": 16, "length": 32, "ratios": (0.25, 0.5)}


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})
    return done.exit_code, done.stdout, done.stderr


def test_a_table_and_a_picture_are_written(folder: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table, picture = tmp_path / "new" / "table.json", tmp_path / "heat.png"
    arguments = ("sensitivity", str(folder), "--text", str(text), "--output", str(table), "--plot", str(picture))
    more = ("--samples", "16", "--length", "32", "--ratios", "0.25,0.5")
    status, out, told = run(*arguments, *more)
    assert status == 0, told
    assert "layers.1.mlp.gate_proj.weight:0" in out and "50% removed" in out and "below, refitted" in out
    assert [path.name for path in table.parent.iterdir()] == ["table.json"], "the workspace is removed at the end"
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = gp.Sensitivities.load(table)
    assert found == gp.sensitivity(folder, text=text, **SMALL)
    assert found.inputs["text"] == str(text) and found.score == "fasp" and found.refit == "least-squares"
    assert all(trial.loss > found.dense - 0.1 for trial in found.trials)
    status, _, told = run(*arguments, *more)
    assert (status, "exists already" in told) == (2, True)
    again = (*arguments, *more, "--force", "--json")
    assert json.loads(run(*again)[1]) == json.loads(table.read_text()) == json.loads(json.dumps(found.to_dict()))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as forked commands have: an unfinished run goes on with the same number only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow  # interrupted runs of the other commands are continued in test_faults.py
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="signals are those of Linux")
@pytest.mark.usefixtures("one_thread")
def test_an_interrupted_command_goes_on(
    folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, refused with other inputs, interrupted, and repeated: the table of a run without interruption."""
    table, errors = tmp_path / "place" / "table.json", tmp_path / "errors"
    unfinished = table.with_name(".table.json.run")
    options = ("--samples", "62", "--length", "64", "--output", str(table))
    arguments = ("sensitivity", str(folder), "--text", str(text), *options)

    def finished() -> int:
        return len(list(unfinished.glob("0/*-measure-sensitivity/*.json")))

    process = Forked([*arguments], errors, stop=Stop(signal.SIGKILL, "-measure-sensitivity/", files=1))
    assert process.wait() == -signal.SIGKILL and [path.name for path in table.parent.iterdir()] == [unfinished.name]

    status, _, message = run(*arguments, "--recipe", "magnitude")
    assert status == 2 and "unfinished run that is not this one: recipe was 'fasp' and is 'magnitude'" in message
    assert f"repeat its command to continue it, or delete {unfinished} to start over" in message

    done, plain, calls = finished(), Objective.losses_from, [0]

    def interrupted(self: Objective, *rest: Any) -> list[float]:
        calls[0] += 1
        if calls[0] == 1:
            raise KeyboardInterrupt
        return plain(self, *rest)

    monkeypatch.setattr(Objective, "losses_from", interrupted)
    status, out, message = run(*arguments)
    assert (status, out, calls[0]) == (130, "", 1) and message.endswith("interrupted: no output was written\n")
    assert f"finished steps are stored in {unfinished}: repeat the command to continue" in message
    assert not table.exists() and finished() == done

    status, out, message = run(*arguments, "--json")
    assert status == 0, message
    again = gp.sensitivity(folder, text=text, samples=62, length=64)
    assert gp.Sensitivities.load(table) == again and calls[0] == 1 + len(again.groups) - done + len(again.groups)
    assert [path.name for path in table.parent.iterdir()] == ["table.json"]


def test_a_model_without_files_is_known_by_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(program: gp.Program) -> gp.Sensitivities:
        return gp.sensitivity(program, batches=batches, recipe="magnitude", refit="none", output=tmp_path / "t.json")

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    batches: list[Any] = [((torch.randn(8, 6),), {}) for _ in range(2)]
    program = gp.trace(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), *batches[0])
    other = program.with_facts(weights={name: value + 1 for name, value in program.weights.items()})
    monkeypatch.setattr(gp.Sensitivities, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(program)
    with pytest.raises(
        WorkspaceError, match=r"not this one: weights was '\w+' and is '\w+'; .* delete .*\.t\.json\.run"
    ):
        measure(other)
    monkeypatch.undo()
    assert measure(program) == gp.Sensitivities.load(tmp_path / "t.json")
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


def test_a_plan_follows_a_table(folder: Path, text: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    for destination in ("free", "stock"):
        gp.sensitivity(folder, text=text, output=table, destination=destination, force=True, **SMALL)
        options: Any = {"sparsity": 0.1, "calibration": text, "samples": 16, "length": 32, "align": 1}
        found = gp.prune(
            folder, output=tmp_path / destination, sensitivity=table, destination=destination, plan_only=True, **options
        )
        assert found.report.sparsity_reached == pytest.approx(0.1, abs=0.02)
    arguments = ("prune", str(folder), "--sparsity", "0.1", "--recipe", "magnitude", "--output", str(tmp_path / "x"))
    status, _, told = run(*arguments, "--sensitivity", str(table))
    assert status == 2 and "measure them with the same recipe" in told
    for recipe, more in (("shortgpt", {}), ("transact", {}), ("adapruner", {}), ("fasp", {"shots": 2})):
        with pytest.raises(PlanError, match=f"recipe {recipe} cannot follow a table of sensitivities"):
            gp.prune(folder, output=tmp_path / "y", recipe=recipe, sensitivity=table, **options, **more)  # type: ignore[arg-type]


def test_what_cannot_be_is_refused_before_any_work(folder: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="name a text"):
        gp.sensitivity("no/such/model")
    with pytest.raises(ExportError, match="is a folder"):
        gp.sensitivity("no/such/model", text=text, output=tmp_path, force=True)
    with pytest.raises(PlanError, match="recipe shortgpt does not score groups"):
        gp.sensitivity(folder, text=text, recipe="shortgpt")
    status, _, told = run("sensitivity", str(folder), "--text", str(text), "--output", "t.json", "--ratios", "many")
    assert status == 2 and "--ratios 'many' is not of the form" in told


def test_a_picture_of_an_unknown_kind_leaves_nothing(folder: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = gp.sensitivity(folder, text=text, recipe="spa", refit="none", **SMALL)
    assert not any(trial.refitted for trial in found.trials)
    heatmap.draw(found, tmp_path / "heat.svg")
    assert "<svg" in (tmp_path / "heat.svg").read_text()
    with pytest.raises(ExportError, match=r"cannot draw .*heat\.moon"):
        gp.sensitivity(folder, text=text, plot=tmp_path / "heat.moon", refit="none", **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heat.svg"]
