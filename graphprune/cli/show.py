"""Answers for people: tables on standard output."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def facts(title: str, table: Mapping[str, Any]) -> None:
    """Names and values, one a line; what is empty is left out."""
    shown = Table(title=escape(title), show_header=False, title_justify="left")
    shown.add_column(style="bold")
    shown.add_column(overflow="fold")
    for name, value in table.items():
        if value not in (None, "", (), [], {}):
            shown.add_row(escape(name.replace("_", " ")), escape(_text(value)))
    Console().print(shown)


def rows(title: str, columns: Sequence[str], table: Sequence[Sequence[object]]) -> None:
    """A table with a heading a column; numbers stand to the right."""
    shown = Table(title=escape(title), title_justify="left")
    for i, column in enumerate(columns):
        numbers = bool(table) and all(isinstance(row[i], int | float) and not isinstance(row[i], bool) for row in table)
        shown.add_column(escape(column), justify="right" if numbers else "left", overflow="fold")
    for row in table:
        shown.add_row(*(escape(_text(cell)) for cell in row))
    Console().print(shown)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.1f}"
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_text(item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\n".join(_text(item) for item in value)
    return str(value)
