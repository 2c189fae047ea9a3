"""Sensitivities as a user asks for them: a table, a picture, and a plan that follows."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import graphprune as gp
from graphprune.cli.commands import app
from graphprune.errors import CalibrationError, ExportError, PlanError
from graphprune.evaluation.masked_loss import Objective
from graphprune.reports import heatmap

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
    assert "layers.1.mlp.gate_proj.weight:0" in out and "50% gone" in out and "below, refitted" in out
    assert sorted(path.name for path in table.parent.iterdir()) == ["table.json"], (
        "the journal goes when the table is whole"
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = gp.Sensitivities.load(table)
    assert found == gp.sensitivity(folder, text=text, **SMALL)
    assert found.inputs["text"] == str(text) and found.score == "fasp" and found.refit == "least-squares"
    assert all(trial.loss > found.dense - 0.1 for trial in found.trials)
    status, _, told = run(*arguments, *more)
    assert (status, "exists already" in told) == (2, True)
    again = (*arguments, *more, "--force", "--json")
    assert json.loads(run(*again)[1]) == json.loads(table.read_text()) == json.loads(json.dumps(found.to_dict()))


def test_a_stopped_command_says_how_it_goes_on(
    folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table.json"
    more = ("--samples", "16", "--length", "32", "--ratios", "0.5", "--output", str(table))
    arguments = ("sensitivity", str(folder), "--text", str(text), *more)
    plain, calls = Objective.losses_from, [0]

    def stopped(self: Objective, *rest: Any) -> list[float]:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return plain(self, *rest)

    monkeypatch.setattr(Objective, "losses_from", stopped)
    status, out, told = run(*arguments)
    journal = tmp_path / "table.json.journal.jsonl"
    assert (status, out) == (130, "")
    assert told.endswith(f"interrupted: what was measured is in {journal}; the same command goes on from there\n")
    assert not table.exists() and len(journal.read_text().splitlines()) == 1 + 6, "two trials of each of three groups"
    status, _, told = run(*arguments, "--recipe", "magnitude")
    assert status == 2 and "was begun with other inputs: score was 'fasp' and is 'magnitude'" in told
    status, out, told = run(*arguments, "--json")
    assert status == 0, told
    assert calls[0] == 4 + len(json.loads(out)["trials"]) / 2 - 3
    assert not journal.exists()


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
