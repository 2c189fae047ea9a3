"""Texts with classes come from JSON lines and tables alike, and a wrong label is named with its place."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from graphprune.errors import CalibrationError, LoadError
from graphprune.statistics.documents import documents
from graphprune.statistics.labeled_texts import labeled_texts

ROWS = [("a bit", 0), ("'odd \"quotes", 1), ("more", 1)]


def test_json_lines_and_tables_are_alike(tmp_path: Path) -> None:
    objects, plain, headed = tmp_path / "a.jsonl", tmp_path / "plain.tsv", tmp_path / "headed.tsv.gz"
    objects.write_text("".join(json.dumps({"text": text, "label": str(y) if y else y}) + "\n" for text, y in ROWS))
    plain.write_text("\n".join(f"{text}\t{y}" for text, y in ROWS))
    table = "".join(f"{text}\tid\t{y}\r\n" for text, y in ROWS)
    headed.write_bytes(gzip.compress(f"sentence\tid\tlabel\r\n\r\n{table}".encode()))
    assert [*labeled_texts(objects, 2)] == [*labeled_texts(plain)] == [*labeled_texts(headed, 2)] == ROWS
    assert [*labeled_texts(f"{headed}[1:3]", 2)] == ROWS[1:]


def test_every_line_of_a_plain_text_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n two \nthree")
    assert [one.text for one in documents(tmp_path / "a.txt", lines=True)] == ["one", "two", "three"]
    assert [one.text for one in documents(f"{tmp_path / 'a.txt'}[1:2]", lines=True)] == ["two"]


@pytest.mark.parametrize("label", [None, True, 1.7, -1, 2, "positive", "1.0"])
def test_what_is_no_class(tmp_path: Path, label: Any) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": f"text {i}", "label": label if i else 0}) + "\n" for i in range(2)))
    match = f"text 2 of {file}, 'text 1', has the label {json.dumps(label)}, expected a whole number from 0 to 1: write"
    with pytest.raises(CalibrationError) as caught:
        [*labeled_texts(file, 2)]
    assert match in str(caught.value)


def test_a_label_may_be_the_name_of_a_class(tmp_path: Path) -> None:
    file, names = tmp_path / "a.tsv", {"negative": 0, "positive": 1, "7": 2}
    file.write_text("a\tpositive\nb\tnegative\nc\t1\nd\t7\n")
    assert [label for _, label in labeled_texts(file, 3, names)] == [1, 0, 1, 2]
    file.write_text("a\t0\nb\tPositive\n")
    with pytest.raises(CalibrationError, match='label "Positive", .* from 0 to 2, or one of negative, positive, 7: '):
        [*labeled_texts(file, 3, names)]


def test_a_table_has_two_columns(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("text\tlabel\na\t1\nb 1\n")
    with pytest.raises(LoadError, match=r"a.tsv, line 3: got 'b 1', expected a text, a tab and a label"):
        [*labeled_texts(tmp_path / "a.tsv")]
