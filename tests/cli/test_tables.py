"""Tables for people: a name is never broken in the middle, whatever the width, and numbers stand to the right."""

import re
from pathlib import Path

import pytest

from graphprune.cli import tables
from tests.cli.test_cli import run

NAMES = [f"model.language_model.layers.{i}.self_attention.{name}.weight:0.1" for i in (3, 17) for name in "qkvo"]
PATH = "/a/folder/of_a_rather_long_name/another-one/texts/wikitext2.test.raw.gz"


def cells(out: str, column: int) -> list[str]:
    """The cells of a column, whose lines are joined; an empty first cell continues the row above."""
    found: list[str] = []
    for line in out.splitlines():
        parts = [part.strip() for part in re.split("[│┃]", line)[1:-1]]
        if len(parts) > column and line.startswith("│"):
            if parts[-1]:
                found.append("")
            found[-1] += parts[column]
    return found


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_names_are_broken_at_dots_only(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    tables.rows("title", ["indices", "group", "size"], [["query heads per KV head", name, 40] for name in NAMES])
    out = capsys.readouterr().out
    assert cells(out, 1) == NAMES
    ends = [re.split("[│┃]", line)[2].rstrip()[-1:] for line in out.splitlines() if line.startswith("│")]
    assert all(end in ".1" for end in ends), out
    if width >= 60:
        assert max(map(len, out.splitlines())) <= width
    assert all(re.split("[│┃]", line)[3].endswith("40 ") for line in out.splitlines() if "40" in line)


def test_without_a_terminal_nothing_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    tables.rows("title", ["group", "where"], [[name, PATH] for name in NAMES])
    tables.facts("title", {"perplexity": f"12.34 -> 15.67 on {PATH} and {PATH}"})
    out = capsys.readouterr().out
    assert (
        all(re.search(rf"{re.escape(name)} *│ {PATH}", out) for name in NAMES) and f"15.67 on {PATH} and {PATH}" in out
    )


def test_paths_are_broken_at_slashes_and_lines_at_spaces() -> None:
    lines = tables.broken(f"12.34 -> 15.67 on {PATH}", 30).split("\n")
    assert lines == [
        "12.34 -> 15.67 on /a/folder/", "of_a_rather_long_name/", "another-one/texts/wikitext2.", "test.raw.gz",
    ]  # fmt: skip
    assert tables.broken("a b\nc d", 2) == "a\nb\nc\nd"
    assert tables.broken("unbreakable", 3) == "unbreakable"


@pytest.mark.parametrize(
    ("column", "right"),
    [
        ([1, 2500], True),
        (["20.0%", "3.5%"], True),
        (["1.5 s", "1,200 s"], True),
        (["+0.0123\n-0.2", "-"], True),
        (["12.34 *", "-"], True),
        (["1.2e-07", "3"], True),
        (["3 of 4", "1"], False),
        (["", ""], False),
    ],
)
def test_numbers_stand_to_the_right(column: list[object], right: bool, capsys: pytest.CaptureFixture[str]) -> None:
    tables.rows("", ["a long heading"], [[cell] for cell in column])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert all(line.endswith("  │") is not right for line in lines if line.strip("│ ")), lines


def test_inspect_at_80_columns(folder: Path) -> None:
    status, out, _ = run("inspect", str(folder), COLUMNS="80")
    tables_found = [part for part in out.split("┏") if "│" in part]
    assert status == 0 and len(tables_found) == 3
    assert max(len(line) for line in out.splitlines() if line[0] in "┏┃┡│└") <= 80
    assert cells(tables_found[0], 1)[-1] == "model.layers.*.mlp.gate_proj.weight:0"
    assert {"KVheads", "queryheadsperKVhead", "rotarypairs", "hiddensize", "valuedimensions", "neurons"} == {
        cell.replace(" ", "") for cell in cells(tables_found[0], 0)
    }
    assert "model.layers.*.mlp.down_proj.weight" in cells(tables_found[1], 0)
