"""The page of a report says what happened, escapes what it is given, and needs nothing but itself."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import graphprune as gp
from graphprune.display import html
from graphprune.errors import CalibrationError, PlanError
from graphprune.reports import report as report_module
from graphprune.reports.grouping import by_kind, by_layer, strips, together
from graphprune.reports.report import CalibrationReport, Quality, Report

HOSTILE = "<script>alert('x')</script>\"&"
EMPTY = ("br", "hr", "img", "input", "link", "meta")


class Reader(HTMLParser):
    """Every element and its attributes; text by the element that it stands in. Elements must nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        """All text on one line, with plain spaces."""
        return " ".join(" ".join(self.words).split())


def alone(text: str) -> Reader:
    """A page that asks for nothing and runs nothing."""
    found = Reader(text)
    assert not {tag for tag, _ in found.seen} & {"script", "link", "img", "iframe", "object", "embed", "form"}
    for _, attributes in found.seen:
        assert not any(name.startswith("on") or name in ("src", "href", "srcset") for name in attributes)
    assert not re.search(r"url\(|@import|https?://", text)
    return found


def example(**changes: Any) -> Report:
    given: dict[str, Any] = {
        "model": "some/folder", "recipe": "fasp", "destination": "stock", "parameters_before": 1000,
        "parameters_after": 800, "sparsity_asked": 0.2, "plan": "cafe", "program": "beef",
        "calibration": CalibrationReport("text.txt", 128, 512),
        "widths": {"layers.0.mlp:0": (64, 48), "layers.1.mlp:0": (64, 32)},
        "seconds": {"calibrate": 1.0, "refit": 130.0}, "memory": {"calibrate": 3 << 20, "refit": 2 << 20},
        "peak_memory": 4 << 20, "errors": {"masked against rewritten": 2e-7}, "loads_with": ("`graphprune.load`",),
        "command": "graphprune prune some/folder --sparsity 0.2", "version": "0.1.0", "notes": ("a note",),
        "quality": (Quality("texts/wiki.txt", 64, 512, 10.0, 12.5),),
        "counts": {"layers.0.mlp.weight": (600, 450), "layers.1.mlp.weight": (300, 250), "head.weight": (100, 100)},
    }  # fmt: skip
    return Report(**{**given, **changes})


def test_the_page_says_what_matters(tmp_path: Path) -> None:
    example().save(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    text = alone(page).text
    assert page.startswith("<!DOCTYPE html>") and "prefers-color-scheme: dark" in page
    for words in (
        "folder, pruned", "removed 20.0 % target 20.0 %", "parameters 800 800 of 1,000",
        "12.5 before 10 , on wiki.txt",
        "texts/wiki.txt 64 \u00d7 512 10 12.5 +25.0 %", "layers.0 600 450 \u221225.0 %", "head 100 100 0 %",
        "layers.*.mlp.weight 900 700 \u221222.2 %", "layers.*.mlp:0 2 64 \u2192 32 to 48", "refit 2 min 10 s",
        "masked against rewritten 2.0e-07", "graphprune prune some/folder --sparsity 0.2", "a note", "2 MiB",
        "text.txt, 128 samples of 512 tokens", "Loads with graphprune.load",
    ):  # fmt: skip
        assert words.replace(" ,", ",") in text, words
    assert Report.load(tmp_path).to_dict() == example().to_dict()


def test_bars_have_the_lengths_of_what_they_tell() -> None:
    seen = alone(html.page("report.html", "x", **_values(example()))).seen
    lines = [
        attributes for tag, attributes in seen if tag == "rect" and "y" not in attributes and "x" not in attributes
    ]
    assert [(a["class"], a["width"]) for a in lines[4:6]] == [("gone", "100.00"), ("left", "75.00")]
    columns = [attributes["height"] for tag, attributes in seen if tag == "rect" and "y" in attributes]
    assert columns == ["25.50", "17.00"], "three quarters and a half of 34"


def _values(report: Report) -> dict[str, Any]:
    return report_module._shown(report)


def test_what_a_page_is_given_is_escaped() -> None:
    hostile = example(
        model=f"some/{HOSTILE}", recipe=HOSTILE, destination=HOSTILE, command=HOSTILE, notes=(HOSTILE,),
        version=HOSTILE, errors={HOSTILE: 1e-7}, loads_with=(HOSTILE,), widths={f"a.0.{HOSTILE}:0": (4, 2)},
        seconds={HOSTILE: 1.0},
        memory={HOSTILE: 1}, counts={f"a.0.{HOSTILE}": (4, 2)}, quality=(Quality(HOSTILE, 1, 2, 3.0, 4.0),),
        calibration=CalibrationReport(HOSTILE, 1, 2), plan=HOSTILE, base_model=HOSTILE,
    )  # fmt: skip
    for text in (hostile._repr_html_(), html.page("report.html", HOSTILE, **_values(hostile))):
        found = alone(text)
        assert found.text.count("<script>alert('x')</script>") > 10


@pytest.mark.parametrize(
    "changes",
    [
        {"sparsity_asked": None, "calibration": None, "errors": {}, "widths": {}, "command": "", "seconds": {}},
        {"quality": (Quality("t", 1, 2, None, 3.0), Quality("u", 1, 2, 3.0, None)), "notes": (), "memory": {}},
        {"cut": False, "counts": {}, "widths": {}, "peak_memory": 0},
        {"memory": {"refit": 1}, "errors": {"a": 0.0}, "quality": ()},
    ],
)
def test_what_is_not_known_is_left_out(changes: dict[str, Any]) -> None:
    text = alone(example(**changes)._repr_html_()).text
    assert ("Quality" in text) == bool(changes.get("quality", True))
    assert ("Time and memory" in text) == bool(changes.get("seconds", True))
    assert "None" not in text


def test_an_older_report_has_a_page(tmp_path: Path) -> None:
    example().save(tmp_path)
    path = tmp_path / "report.json"
    table = json.loads(path.read_text())
    for name in ("quality", "counts", "memory"):
        del table[name]
    path.write_text(json.dumps(table))
    assert "folder, pruned" in alone(Report.load(tmp_path)._repr_html_()).text


def test_parameters_are_folded() -> None:
    counts = {"a.0.w": (4, 2), "a.0.b": (1, 1), "a.1.w": (4, 4), "a.1.experts.3.w": (2, 1), "w": (3, 0), "m.w": (0, 5)}
    assert [(b.name, b.before, b.after) for b in by_layer(counts)] == [
        ("a.0", 5, 3), ("a.1", 6, 5), ("w", 3, 0), ("m", 0, 5),
    ]  # fmt: skip
    assert by_kind(counts)[0].name == "a.*.w" and by_kind(counts)[0].whole == 1
    assert all(0 <= bar.left <= 1 and 0 <= bar.whole <= 1 for bar in (*by_layer(counts), *by_kind(counts)))
    same = [*by_layer({f"a.{i}.w": (4, 2) for i in range(3)}), *by_layer({"b.w": (4, 3)})]
    assert [(b.name, b.before, b.after) for b in together(same)] == [("a.0 to a.2, each", 4, 2), ("b", 4, 3)]
    (strip,) = strips({"a.0.w:0": (4, 2), "a.1.w:0": (4, 3)})
    assert (strip.name, strip.widths) == ("a.*.w:0", "4 \u2192 2 to 3")


@pytest.mark.parametrize(
    ("value", "told"),
    [(12, "12\u202fs"), (0.05, "50\u202fms"), (130.4, "2\u202fmin 10\u202fs"), (0.123, "0.123\u202fs")],
)
def test_times_have_a_unit_that_suits_them(value: float, told: str) -> None:
    assert html.seconds(value) == told


def test_a_run_measures_what_it_tells(folder: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options: Any = {"recipe": "magnitude", "sparsity": 0.2, "align": 1, "length": 32}
    made = gp.prune(folder, output=out, evaluate=[text], windows=8, **options).report
    (found,) = made.quality
    for measured, model in ((found.before, folder), (found.after, out)):
        assert measured == pytest.approx(gp.evaluate(model, text, length=32, windows=8).perplexity, rel=1e-4)
    assert (found.text, found.windows, found.length) == (str(text), 8, 32)
    assert sum(before for before, _ in made.counts.values()) == made.parameters_before
    assert sum(after for _, after in made.counts.values()) == made.parameters_after
    assert made.memory.keys() == made.seconds.keys() and all(0 < n <= made.peak_memory for n in made.memory.values())
    page = alone((out / "report.html").read_text(encoding="utf-8")).text
    assert f"{found.after:.4g}" in page and "model.layers.1" in page
    gp.verify_folder(out)
    text_of_call = (
        f"graphprune.prune({str(folder)!r}, output={str(out)!r}, sparsity=0.2, recipe='magnitude', align=1, length=32"
    )
    assert made.command.startswith(text_of_call) and f"evaluate=({str(text)!r},)" in made.command
    again = eval(made.command.replace("graphprune.", "gp.", 1).replace(str(out), str(tmp_path / "again")))
    assert again.plan.digest == made.plan
    planned = gp.prune(folder, output=tmp_path / "plan", plan_only=True, **options).report
    assert dict(planned.counts) == dict(made.counts)
    with pytest.raises(PlanError, match="a plan without a model cannot be evaluated"):
        gp.prune(folder, output=tmp_path / "p", plan_only=True, evaluate=[text], windows=8, **options)
    with pytest.raises(CalibrationError, match="windows of 32 tokens, expected 999"):
        gp.prune(folder, output=tmp_path / "p", evaluate=[text], windows=999, **options)
