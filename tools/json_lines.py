"""Files of JSON lines that keep what a benchmark measured, a record a line."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def tables(path: Path) -> Iterator[dict[str, Any]]:
    """Tables of a file; a line that an interruption cut short is passed over."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            table: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        yield table


def append(path: Path, record: "DataclassInstance") -> None:
    """Keep a record."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(record)) + "\n")
