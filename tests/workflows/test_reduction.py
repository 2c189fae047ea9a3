"""What a run says of its target: what was reached, in which unit, why it differs, and what the destination forbids."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import graphprune as gp
from graphprune.reports.report import Report
from tests.cli.test_cli import run
from tests.reports.test_report_page import alone, example

Prune = Callable[..., Any]


@pytest.fixture
def prune(folder: Path, text: Path, tmp_path: Path) -> Prune:
    """Prune the saved decoder; a plan alone without further options."""
    standard: dict[str, Any] = {
        "recipe": "magnitude", "sparsity": 0.1, "output": tmp_path / "out", "calibration": text, "samples": 16,
        "length": 16, "plan_only": True, "align": 1,
    }  # fmt: skip
    return lambda **options: gp.prune(folder, **{**standard, **options})


def test_what_was_reached_and_why_it_is_not_the_target(prune: Prune, tmp_path: Path) -> None:
    report = prune(recipe="fasp", destination="stock", align=8).report
    assert (
        report.removed == "10.3 % of the parameters (target 10 %; widths are multiples of 8 and the same in all layers)"
    )
    page = alone((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
    assert "removed 10.3 % target 10.0 %" in page
    assert f"| Removed | {report.removed} |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "20.0 % of the parameters (target 20 %)"),
        ({"parameters_after": 808}, "19.2 % of the parameters (target 20 %; widths are multiples of 8)"),
        ({"parameters_after": 808, "rounding": ""}, "19.2 % of the parameters (target 20 %)"),
        ({"sparsity_asked": 0.125, "parameters_after": 875}, "12.5 % of the parameters (target 12.5 %)"),
        ({"sparsity_asked": None}, "20.0 % of the parameters"),
        (
            {"budget": "macs", "amounts": (1000.0, 850.0)},
            "15.0 % of the multiply-accumulates (target 20 %; widths are multiples of 8), 20.0 % of the parameters",
        ),
    ],
)
def test_the_words_of_a_report(changes: dict[str, Any], words: str) -> None:
    assert example(**{"rounding": "widths are multiples of 8", **changes}).removed == words


@pytest.mark.slow
def test_a_budget_in_latency_says_the_speed_up(prune: Prune, tmp_path: Path) -> None:
    result = prune(destination="free", budget="latency", runtime="torch")
    before, after = result.report.amounts
    assert 0 < after < before < 1000, "milliseconds"
    assert result.report.budget_reached == pytest.approx(0.1, abs=0.05)
    assert f"{before:.4g} ms -> {after:.4g} ms, {before / after:.2f}x as fast (estimated" in result.report.amount
    assert f"  latency: {before:.4g} ms -> " in repr(result.report)
    table = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (table["budget"], table["amounts"]) == ("latency", [before, after])
    page = alone((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
    assert "latency removed" in page and "x as fast" in page
    assert Report.load(tmp_path / "out").to_dict() == result.report.to_dict()


@pytest.mark.parametrize("plan_only", [True, False])
def test_other_budgets_say_their_unit(prune: Prune, tmp_path: Path, plan_only: bool) -> None:
    report = prune(destination="stock", budget="macs", plan_only=plan_only).report
    assert "of the multiply-accumulates (target 10 %; widths are whole numbers and the same" in report.removed
    before, after = report.amounts
    assert report.amount == f"{before:,.0f} -> {after:,.0f}" and 0.05 < 1 - after / before < 0.15
    if not plan_only:
        program = gp.load(tmp_path / "out")
        assert sum(term.at({}) for term in gp.analyze(program).terms["macs"]) == pytest.approx(after)


def test_a_pipeline_sets_its_own_share(prune: Prune) -> None:
    text = "analyze | score{by=magnitude} | allocate{ratio=0.25} | select"
    report = prune(sparsity=None, pipeline=text, destination="stock").report
    assert report.removed.endswith("% of the parameters") and 0.2 < report.sparsity_reached < 0.4


def test_bytes_of_a_cache(prune: Prune) -> None:
    report = prune(destination="free", budget="kv_cache").report
    assert report.amounts[0] == 128 and "of the bytes of KV cache a token (target 10 %" in report.removed


def test_a_destination_that_holds_less_than_the_recipe_cuts(prune: Prune, folder: Path) -> None:
    per_layer = "limited by destination per-layer: no narrower value dimensions, since the heads of model.layers.0"
    notes = prune(destination="per-layer", recipe="fasp").report.notes
    assert any(note.startswith(per_layer) and note.endswith("(destination free has no such limit)") for note in notes)
    notes = prune(destination="stock", recipe="fasp", output=folder.parent / "stock").report.notes
    limited = next(note for note in notes if note.startswith("limited by destination stock: "))
    assert "one width for all layers (destination per-layer has no such limit); no narrower " in limited
    for recipe in ("fasp", "best"):
        report = prune(destination="free", recipe=recipe, output=folder.parent / f"free-{recipe}").report
        assert not [note for note in report.notes if note.startswith("limited")]


def test_best_says_what_stock_takes_from_it(folder: Path, text: Path, tmp_path: Path) -> None:
    words = ("--calibration", str(text), "--samples", "16", "--length", "16", "--plan-only", "--output")
    command = ("prune", str(folder), "--recipe", "best", "--sparsity", "0.1", *words, str(tmp_path / "out"))
    status, out, told = run(*command)
    assert (status, told) == (0, "")
    assert "limited by destination stock: one width for all layers" in out
    assert "no factors of a low rank (destination free has no such limit)" in " ".join(
        re.sub("[│\n]", " ", out).split()
    )


def test_results_are_few_lines(prune: Prune) -> None:
    lines = repr(prune(destination="stock", plan_only=False)).splitlines()
    assert lines[0] == "Result:" and lines[1].startswith("  Report of magnitude on ") and len(lines) < 20
    assert any(line.startswith("  Plan for the model ") for line in lines)
    assert any(line.startswith("  Program of ") for line in lines)


def test_comparisons_are_few_lines(prune: Prune, tmp_path: Path) -> None:
    for name in ("a", "b"):
        prune(destination="stock", output=tmp_path / name)
    head, *rows = repr(gp.compare(tmp_path / "a", tmp_path / "b")).splitlines()
    assert head == "Comparison of 2 runs" and [row.split()[:3] for row in rows] == [
        ["a", "magnitude", "10.3%"], ["b", "magnitude", "10.3%"],
    ]  # fmt: skip


def test_labels_stand_beside_the_names_of_groups(prune: Prune, tmp_path: Path) -> None:
    report = prune(destination="free", recipe="fasp").report
    assert set(report.labels) == set(report.widths) and "neurons" in report.labels.values()
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| group | indices | before | after |\n|---|---|---|---|" in card and "` | neurons | 40 | " in card


def test_apply_takes_the_folder_of_a_plan(prune: Prune, folder: Path, tmp_path: Path) -> None:
    planned = prune(destination="stock")
    status, out, _ = run("apply", str(folder), str(tmp_path / "out"), "--output", str(tmp_path / "cut"), "--json")
    assert status == 0 and json.loads(out)["parameters_after"] == planned.report.parameters_after
    again = gp.apply_plan(folder, tmp_path / "out", output=tmp_path / "again")
    assert again.plan.digest == planned.plan.digest
    assert again.report.labels == planned.report.labels and "neurons" in again.report.labels.values()
    assert repr(again.plan).splitlines()[1:] == repr(planned.plan).splitlines()[1:]
    status, _, told = run("apply", str(folder), str(folder), "--output", str(tmp_path / "no"))
    assert status == 2 and "plan.json is no plan that graphprune saved (reason: no such file or directory)" in told
