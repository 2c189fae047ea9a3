"""Tables in the README and the pages lie between marker comments; the benchmarks that measured them write them."""

from pathlib import Path

ROOT = Path(__file__).parent.parent


def documents() -> list[Path]:
    """The README and the pages."""
    return [ROOT / "README.md", *sorted((ROOT / "tools/docs/pages").glob("*.md"))]


def fill(name: str, text: str) -> None:
    """Put a text between the marker comments of that name, in the document that has them.

    Raises:
        ValueError: if none has, or several have.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    found = [path for path in documents() if begin in path.read_text(encoding="utf-8")]
    if len(found) != 1:
        raise ValueError(f"one document is to have {begin}, and {len(found)} have: {', '.join(map(str, found))}")
    before, rest = found[0].read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    found[0].write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
