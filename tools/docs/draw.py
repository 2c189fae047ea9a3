"""Draw the pictures of the page on axes: rows of boxes, as wide as axes are large, in light and dark.

Usage: .venv/bin/python tools/docs/draw.py
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, ROW, GAP, LEFT = 720, 34, 40, 12
STYLE = (
    "text{font:14px system-ui,sans-serif;fill:#222}.s{font-size:12px;fill:#555}.b{stroke:#555;stroke-width:1}"
    "line{stroke:#777;stroke-width:1}.c0{fill:#cfe8e5}.c1{fill:#f6dcc1}.c2{fill:#d8d4f0}.c3{fill:#eee}"
    ".cut{fill:none;stroke:#b3261e;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#eee}.s{fill:#bbb}.b{stroke:#bbb}line{stroke:#999}"
    ".c0{fill:#1f5f58}.c1{fill:#7a4a1c}.c2{fill:#4a4286}.c3{fill:#3a3d45}.cut{stroke:#ff8a80}}"
)


@dataclass(frozen=True)
class Box:
    """A box from `start` to `end`, as shares of the whole width, with a word in it and a colour."""

    start: float
    end: float
    word: str = ""
    colour: int = 0
    cut: bool = False


@dataclass(frozen=True)
class Row:
    """Boxes side by side, and what they are, above them."""

    title: str
    boxes: Sequence[Box]


def even(count: int, words: Callable[[int], str], colours: Callable[[int], int], cuts: Sequence[int] = ()) -> list[Box]:
    """Boxes of one size that fill a row."""
    return [Box(i / count, (i + 1) / count, words(i), colours(i), i in cuts) for i in range(count)]


def svg(title: str, rows: Sequence[Row]) -> str:
    """Rows below each other as one picture."""
    height = len(rows) * (ROW + GAP) + 8
    parts = [part for i, row in enumerate(rows) for part in _row(row, i * (ROW + GAP) + GAP - 10)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _row(row: Row, top: int) -> list[str]:
    long = WIDTH - 2 * LEFT
    parts = [f'<text class="s" x="{LEFT}" y="{top - 8}">{escape(row.title)}</text>']
    for box in row.boxes:
        x, wide = LEFT + box.start * long, (box.end - box.start) * long
        parts.append(f'<rect class="b c{box.colour}" x="{x:.1f}" y="{top}" width="{wide:.1f}" height="{ROW}"/>')
        if box.word:
            parts.append(f'<text x="{x + wide / 2:.1f}" y="{top + 22}" text-anchor="middle">{escape(box.word)}</text>')
        if box.cut:
            parts.append(f'<rect class="cut" x="{x + 2:.1f}" y="{top + 2}" width="{wide - 4:.1f}" height="{ROW - 4}"/>')
    return parts


def heads() -> str:
    """Nine query heads are three key/value heads times a group of three."""
    return svg(
        "576 rows of q_proj are 3 x 3 x 64",
        [
            Row("q_proj, 576 rows", [Box(0, 1, "576", 3)]),
            Row("seen by view(..., 9, 64): 9 heads of 64", even(9, lambda i: f"head {i}", lambda i: 3)),
            Row(
                "repeat_kv makes 3 x 3 of the 9 heads: kv 3 (the colour) x group 3",
                even(9, lambda i: f"{i // 3}, {i % 3}", lambda i: i // 3, cuts=(3, 4, 5)),
            ),
            Row(
                "k_proj and v_proj, 192 rows: kv 3 x 64",
                even(3, lambda i: f"kv {i}", lambda i: i, cuts=(1,)),
            ),
        ],
    )


def halves() -> str:
    """The two halves of a head are one axis."""
    pairs = 8
    return svg(
        "rotate_half pairs index i with index i + 32",
        [
            Row("a head of 64", [Box(0, 1, "64", 3)]),
            Row("rotate_half cuts it in two halves of 32", [Box(0, 0.5, "32", 0), Box(0.5, 1, "32", 1)]),
            Row(
                "and adds each half to the other: index i of both is one index (drawn: 8 of 32)",
                even(2 * pairs, lambda i: str(i % pairs), lambda i: i // pairs, cuts=(3, 3 + pairs)),
            ),
        ],
    )


def sums() -> str:
    """One matrix for q, k and v is a sum of three axes, and each has its own structure."""
    ends = (0.0, 0.6, 0.8, 1.0)
    names = ("q: 3 x 3 x 64", "k: 3 x 64", "v: 3 x 64")
    pieces = [(ends[j], ends[j + 1], count) for j, count in enumerate((9, 3, 3))]
    boxes = [
        Box(a + (b - a) * i / n, a + (b - a) * (i + 1) / n, "", i // 3 if n == 9 else i, (i // 3 if n == 9 else i) == 1)
        for a, b, n in pieces
        for i in range(n)
    ]
    return svg(
        "960 rows of one q|k|v matrix are a sum of three segments",
        [
            Row("qkv_proj, 960 rows", [Box(0, 1, "960", 3)]),
            Row(
                "split in (576 | 192 | 192)",
                [Box(a, b, name, j) for j, ((a, b, _), name) in enumerate(zip(pieces, names, strict=True))],
            ),
            Row("the second of three key/value heads, in all three segments", boxes),
        ],
    )


PICTURES = {"heads.svg": heads, "halves.svg": halves, "sums.svg": sums}


def drawn(name: str) -> str:
    """A picture by the name of its file."""
    return PICTURES[name]()


if __name__ == "__main__":
    for file in PICTURES:
        (Path(__file__).parent / "pages" / "pictures" / file).write_text(drawn(file), encoding="utf-8")
