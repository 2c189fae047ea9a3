"""Runs side by side: the numbers of their reports, and which of them no other beats."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import graphprune as gp
from graphprune.cli.commands import app
from graphprune.display.scatter import Point, ahead, plot, short
from graphprune.errors import ExportError, LoadError
from graphprune.reports.report import Quality
from tests.reports.test_report_page import HOSTILE, alone, example


def saved(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    example(**changes).save(folder)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Four runs; `c` is larger and worse than `b`, and `d` was measured on another text."""
    made = {"a": (900, 11.0), "b": (800, 12.0), "c": (850, 14.0)}
    folders = [
        saved(tmp_path / name, parameters_after=size, quality=(Quality("t.txt", 64, 512, 10.0, loss),))
        for name, (size, loss) in made.items()
    ]
    return [*folders, saved(tmp_path / "d", quality=(Quality("t.txt", 8, 512, 10.0, 11.0),), program="other")]


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})
    return done.exit_code, done.stdout, done.stderr


def test_the_frontier_is_what_no_other_run_beats(runs: list[Path]) -> None:
    found = gp.compare(*runs)
    assert found.texts == ("t.txt, 64 x 512", "t.txt, 8 x 512") and not found.one_model
    assert [p.name for p in found.points(found.texts[0]) if p.ahead] == ["before", "a", "b"]
    assert [p.name for p in found.points(found.texts[0])] == ["before", "a", "b", "c"]
    rows = found.to_dict()["runs"]
    assert [row["frontier"] for row in rows] == [
        {found.texts[0]: True}, {found.texts[0]: True}, {found.texts[0]: False}, {found.texts[1]: True},
    ]  # fmt: skip
    assert rows[0]["perplexity"] == {found.texts[0]: {"before": 10.0, "after": 11.0}}


def test_a_single_parameter_makes_no_run_the_smallest() -> None:
    points = [Point("a", 1000, 5.0), Point("b", 999, 9.0), Point("c", 900, 9.0), Point("d", 1000, 5.0)]
    assert ahead(points) == [True, False, True, True]
    assert ahead([]) == []


def test_points_stand_where_their_numbers_are() -> None:
    points = [Point("dense", 2e6, 10.0, dense=True), Point("half", 1e6, 20.0), Point("bad", 1.5e6, 40.0, ahead=False)]
    drawn = plot(points)
    marks = {mark.point.name: mark for mark in drawn.marks}
    assert marks["half"].x < marks["bad"].x < marks["dense"].x
    assert marks["bad"].x - marks["half"].x == pytest.approx(marks["dense"].x - marks["bad"].x)
    assert marks["dense"].y - marks["half"].y == pytest.approx(marks["half"].y - marks["bad"].y), "logarithmic"
    assert len(drawn.frontier.split()) == 2
    ticks = {float(tick.text): tick.at for tick in drawn.up}
    assert ticks[20.0] == pytest.approx(marks["half"].y)
    assert all(drawn.left <= tick.at <= drawn.right for tick in drawn.across)
    assert {tick.text for tick in drawn.across} >= {"1 M", "2 M"}


@pytest.mark.parametrize("points", [[("a", 5e5, 3.0)], [("a", 5e5, 3.0)] * 2, [("a", 1.0, 1e-6), ("b", 1e12, 1e30)]])
def test_few_and_extreme_points_are_drawn(points: list[tuple[str, float, float]]) -> None:
    drawn = plot([Point(*point) for point in points])
    for mark in drawn.marks:
        assert drawn.left <= mark.x <= drawn.right and drawn.top <= mark.y <= drawn.bottom
    assert drawn.across and drawn.up and len(drawn.across) < 12


def test_labels_do_not_lie_on_each_other() -> None:
    drawn = plot([Point(f"run {i}", 1e6 + i, 20 + 0.01 * i) for i in range(8)] + [Point("far", 3e6, 90)])
    lines = sorted(mark.label_y for mark in drawn.marks if mark.point.name != "far")
    assert all(b - a >= 14.9 for a, b in pairwise(lines))


def test_sizes_are_short() -> None:
    assert [short(n) for n in (950, 1200, 1.5e6, 7e9)] == ["950", "1.2 K", "1.5 M", "7 G"]


def test_runs_are_compared_on_the_command_line(runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    names = [str(path) for path in runs]
    status, out, told = run("compare", *names, "--output", str(page))
    assert status == 0, told
    assert "12 *" in out and "14 *" not in out and "start from different models" in out
    text = alone(page.read_text(encoding="utf-8")).text
    assert "4 runs" in text and "parameters left" in text and "They start from different models" in text
    assert json.loads(run("compare", *names, "--json")[1]) == json.loads(json.dumps(gp.compare(*runs).to_dict()))
    status, _, told = run("compare", *names, "--output", str(page))
    assert status == 2 and "exists already" in told
    assert "size" in alone(gp.compare(*runs)._repr_html_()).text.lower()


def test_what_is_no_run_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="got 1 folder to compare, expected at least two"):
        gp.compare(runs[0])
    status, _, told = run("compare", str(runs[0]), str(tmp_path), "--output", str(tmp_path / "x.html"))
    assert status == 2 and "report.json is not a report" in told and not (tmp_path / "x.html").exists()
    with pytest.raises(ExportError, match="is a folder"):
        gp.compare(*runs).save(tmp_path, force=True)


def test_runs_without_quality_are_told_how_to_get_it(tmp_path: Path) -> None:
    folders = [saved(tmp_path / side / "out", quality=(), counts={}, seconds={}) for side in ("left", "right")]
    found = gp.compare(*folders)
    assert [run.name for run in found.runs] == ["left/out", "right/out"] and found.one_model
    text = alone(found._repr_html_()).text
    assert "prune --evaluate TEXT" in text and "Size and quality" not in text


def test_hostile_names_are_escaped_and_lost_numbers_are_said(tmp_path: Path) -> None:
    lost = (Quality(HOSTILE, 1, 2, 3.0, None),)
    more = {"recipe": HOSTILE, "model": HOSTILE, "command": HOSTILE, "quality": lost}
    folders = [saved(tmp_path / name, **more) for name in ("a <b>", "c & d")]
    text = alone(gp.compare(*folders)._repr_html_()).text
    assert "a <b>" in text and "not finite" in text and text.count("<script>alert('x')</script>") >= 5
