"""Tables on standard output: names break at their dots and slashes only, and numbers are aligned to the right."""

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

NUMBER = re.compile(r"[-+\u2212]?[\d,.]+(e[-+]\d+)?(\s?(%|s|ms|MiB|GiB|x))?( \*)?|-")
PIECES = re.compile(r"\S+?(?:[./](?=[a-zA-Z_*-])|\s+|$)|\s+")


def facts(title: str, table: Mapping[str, Any]) -> None:
    """Print names and values, one a line; empty values are omitted."""
    known = [(name.replace("_", " "), value) for name, value in table.items() if value not in (None, "", (), [], {})]
    _print(title, Table(show_header=False), [("", "bold"), ("", "")], known)


def rows(title: str, columns: Sequence[str], table: Sequence[Sequence[object]]) -> None:
    """Print a table with a heading for each column."""
    _print(title, Table(), [(column, "") for column in columns], table)


def text(lines: str) -> None:
    """Print lines unchanged."""
    _console().print(Text(lines), soft_wrap=True)


def _print(title: str, shown: Table, columns: Sequence[tuple[str, str]], table: Sequence[Sequence[object]]) -> None:
    cells = [[format_value(value) for value in row] for row in table]
    console, texts = _console(), list(zip(*cells, strict=True)) or [()] * len(columns)
    widths = fitted([[name, *column] for (name, _), column in zip(columns, texts, strict=True)], console.width)
    for (name, style), column, width in zip(columns, texts, widths, strict=True):
        numbers = any(column) and all(NUMBER.fullmatch(line) for cell in column for line in cell.split("\n") if line)
        shown.add_column(
            Text(broken(name, width)),
            justify="right" if numbers else "left",
            style=style,
            no_wrap=True,
            min_width=width,
        )
    for row in cells:
        shown.add_row(*(Text(broken(cell, width)) for cell, width in zip(row, widths, strict=True)))
    console.print(Text(title, style="italic"), soft_wrap=True)
    console.width = max(console.width, sum(widths) + 3 * len(widths) + 1)
    console.print(shown)


def _console() -> Console:
    """Console as wide as the terminal, or, without one, as the longest line."""
    console = Console(emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 10_000
    return console


def fitted(columns: Sequence[Sequence[str]], width: int) -> list[int]:
    """Widths of columns, so that a table fits in `width` characters if its longest pieces do, in few lines."""
    lines = [[line for cell in column for line in cell.split("\n")] for column in columns]
    widths = [max(map(len, column), default=0) for column in lines]
    least = [max((len(piece.rstrip()) for line in column for piece in pieces(line)), default=0) for column in lines]
    available = width - 3 * len(widths) - 1
    while sum(widths) > available and widths != least:
        narrower = [[n - (i == j) for j, n in enumerate(widths)] for i in range(len(widths)) if widths[i] > least[i]]
        widths = min(narrower, key=lambda tried: (_height(columns, tried), max(tried)))
    return widths


def _height(columns: Sequence[Sequence[str]], widths: Sequence[int]) -> int:
    """Number of lines of a table."""
    counted = [
        [broken(cell, width).count("\n") for cell in column] for column, width in zip(columns, widths, strict=True)
    ]
    return sum(map(max, zip(*counted, strict=True)))


def pieces(line: str) -> list[str]:
    """Parts of a line between which it may break: after spaces, and after dots and slashes before a word."""
    return PIECES.findall(line)


@cache
def broken(cell: str, width: int) -> str:
    """Text broken into lines of at most `width` characters, as far as its pieces allow."""
    lines: list[str] = []
    for line in cell.split("\n"):
        lines.append("")
        for piece in pieces(line):
            if lines[-1] and len((lines[-1] + piece).rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def format_value(value: object) -> str:
    """Format a value as text: numbers with separators, a list with one item on each line."""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.1f}"
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {format_value(item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\n".join(format_value(item) for item in value)
    return str(value)
