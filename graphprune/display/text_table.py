"""Small tables of text for Python prompts."""

from collections.abc import Sequence

MOST = 12  # rows


def text_table(rows: Sequence[Sequence[object]], columns: Sequence[str] = (), limit: int = MOST) -> list[str]:
    """Lines with aligned columns, numbers to the right; long tables are shortened to their first rows."""
    if not rows:
        return []
    shown = [*([columns] if columns else []), *rows[:limit]]
    cells = [[f"{cell:,}" if type(cell) is int else str(cell) for cell in row] for row in shown]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [all(isinstance(cell, int | float) for cell in column) for column in zip(*rows, strict=True)]
    pairs = [list(zip(row, widths, right, strict=True)) for row in cells]
    lines = ["  ".join(cell.rjust(n) if r else cell.ljust(n) for cell, n, r in row).rstrip() for row in pairs]
    return lines + ([f"... and {len(rows) - limit} more"] if len(rows) > limit else [])
