"""Files of graphprune: a value of another type is refused, and the message names it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from graphprune.support import json_fields
from graphprune.support.json_fields import Field, FieldError


@dataclass(frozen=True)
class Inner:
    share: float
    name: str = "none"


@dataclass(frozen=True)
class Outer:
    count: int
    inner: Inner | None = None
    pairs: Mapping[str, tuple[int, int]] = ()  # type: ignore[assignment]
    others: tuple[Inner, ...] = ()


def test_a_dataclass_with_all_kinds_of_fields() -> None:
    table = {"count": 3, "inner": None, "pairs": {"a": [1, 2]}, "others": [{"share": 1}, {"share": 0.5, "name": "x"}]}
    assert Field(table).as_dataclass(Outer) == Outer(3, None, {"a": (1, 2)}, (Inner(1.0), Inner(0.5, "x")))


WRONG: list[tuple[Any, str]] = [
    ([], "the file is a list, expected an object"),
    ({}, "the file lacks count"),
    ({"count": True}, "count is a truth value True, expected a whole number"),
    ({"count": 1.0}, "count is a number 1.0, expected a whole number"),
    ({"count": 1, "inner": 3}, "inner is a whole number 3, expected an object"),
    ({"count": 1, "inner": {"share": "x"}}, r"inner\['share'\] is a text 'x', expected a number"),
    ({"count": 1, "inner": {"share": 10**400}}, r"inner\['share'\] is a whole number .*expected a finite number"),
    ({"count": 1, "pairs": {"a": [1]}}, r"pairs\['a'\] has 1 items, expected 2"),
    ({"count": 1, "others": [{"share": 1}, 2]}, r"others\[1\] is a whole number 2, expected an object"),
    ({"count": 1, "more": 1}, "more is unknown"),
]


@pytest.mark.parametrize(("table", "match"), WRONG)
def test_another_type(table: Any, match: str) -> None:
    with pytest.raises(FieldError, match=match):
        Field(table).as_dataclass(Outer)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        (b"[NaN]", "NaN is not a number of JSON"),
        (b"\xff", "utf-8"),
    ],
)
def test_a_file_that_is_no_json(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=match):
        json_fields.read(path)
