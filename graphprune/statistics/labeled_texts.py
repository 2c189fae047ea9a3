"""Texts with the numbers of their classes."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from graphprune.errors import CalibrationError
from graphprune.statistics.documents import documents

WHOLE = re.compile(r"-?\d{1,18}")
SHOWN = 8  # names in a message
NAMELESS: Mapping[str, int] = MappingProxyType({})


def labeled_texts(
    name: str | Path, classes: int | None = None, names: Mapping[str, int] = NAMELESS
) -> Iterator[tuple[str, int]]:
    """Stream the texts of a .jsonl, .parquet or .tsv file with their classes, whole numbers below `classes`.

    A label is the number of a class, or one of its `names`.

    Raises:
        CalibrationError: if a text has no label, or one that is no class.
        LoadError: if the file cannot be read.
    """
    for number, document in enumerate(documents(name, lines=True, labels=names), 1):
        label = _class(document.label, names)
        if label is None or not 0 <= label < (classes or label + 1):
            shown = json.dumps(document.label, default=str)
            upwards = f"0 to {classes - 1}" if classes else "0 on"
            some = [*names][:SHOWN] + ["..."] * (len(names) > SHOWN)
            upwards += f", or one of {', '.join(some)}" if names else ""
            raise CalibrationError(
                f"text {number} of {name}, {document.text[:40]!r}, has the label {shown}, expected a whole number from "
                f'{upwards}: write {{"text": "...", "label": 1}} in each line of a .jsonl file, or a text, a tab and a '
                "label in that of a .tsv file"
            )
        yield document.text, label


def _class(label: Any, names: Mapping[str, int]) -> int | None:
    """Number of a label: of its name, or a whole number, also as text; None if it is none."""
    if isinstance(label, str):
        text = label.strip()
        return int(text) if text not in names and WHOLE.fullmatch(text) else names.get(text)
    return None if isinstance(label, bool) or not isinstance(label, int) else label
