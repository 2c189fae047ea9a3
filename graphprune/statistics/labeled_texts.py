"""Texts with the numbers of their classes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graphprune.errors import CalibrationError
from graphprune.statistics.documents import documents

WHOLE = re.compile(r"-?\d{1,18}")


def labeled_texts(name: str | Path, classes: int | None = None) -> Iterator[tuple[str, int]]:
    """Stream the texts of a .jsonl, .parquet or .tsv file with their classes, whole numbers below `classes`.

    Raises:
        CalibrationError: if a text has no label, or one that is no class.
        LoadError: if the file cannot be read.
    """
    for number, document in enumerate(documents(name, lines=True), 1):
        label = _class(document.label)
        if label is None or not 0 <= label < (classes or label + 1):
            shown = json.dumps(document.label, default=str)
            upwards = f"0 to {classes - 1}" if classes else "0 on"
            raise CalibrationError(
                f"text {number} of {name}, {document.text[:40]!r}, has the label {shown}, expected a whole number from "
                f'{upwards}: write {{"text": "...", "label": 1}} in each line of a .jsonl file, or a text, a tab and a '
                "label in that of a .tsv file"
            )
        yield document.text, label


def _class(label: Any) -> int | None:
    """Whole number of a label, also as text; None if it is none."""
    if isinstance(label, str):
        return int(label) if WHOLE.fullmatch(label.strip()) else None
    return None if isinstance(label, bool) or not isinstance(label, int) else label
