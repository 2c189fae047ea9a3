"""Tables in the README lie between marker comments, and are written by the benchmarks that measured them."""

from pathlib import Path


def fill(readme: Path, name: str, text: str) -> None:
    """Put a text between the marker comments of that name."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = readme.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    readme.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
