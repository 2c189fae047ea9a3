"""Includes of sections of other documents in pages, so that nothing is written twice.

A comment ``<!-- include FILE#NAME -->`` in a page becomes the section of a file under the heading of that name, or what
lies between its marker comments of that name. Links that leave the pages work in a checkout, and are plain text on the
site, which does not have what they lead to.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
INCLUDE = re.compile(r"^<!-- include (?P<file>[^#\s]+)#(?P<name>.+) -->$", re.MULTILINE)
CELL = re.compile(r"<t[dh]\b.*?</t[dh]>", re.DOTALL)
NAME = re.compile(r"<[^>]*>|(?:--|[^\s<>]*[\w*][-/_={.])[^\s<>]+")
OUTWARD = re.compile(r"\[(?P<text>[^\]]+)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Page with its includes, for mkdocs to render."""
    return OUTWARD.sub(r"\g<text>", whole(markdown))


def on_page_content(html: str, **_: Any) -> str:
    """The rendered page, with names in table cells that no browser breaks in the middle."""
    return CELL.sub(lambda cell: NAME.sub(_unbroken, cell[0]), html)


def _unbroken(found: re.Match[str]) -> str:
    return found[0] if found[0].startswith("<") else f'<span class="whole">{found[0]}</span>'


def whole(markdown: str) -> str:
    """A page with what it includes.

    Raises:
        ValueError: if a file has no such section.
    """
    return INCLUDE.sub(lambda found: section(found["file"], found["name"]), markdown)


def section(file: str, name: str) -> str:
    """Text between the marker comments `name` of a file, or under its heading `name` with deeper headings.

    Raises:
        ValueError: if there is neither.
    """
    text = (ROOT / file).read_text(encoding="utf-8")
    if f"<!-- {name} -->" in text:
        return text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip()
    heading = re.search(rf"^(?P<level>##+) {re.escape(name)}$", text, re.MULTILINE)
    if heading is None:
        raise ValueError(f"{file} has neither a heading nor marker comments {name!r}")
    rest = text[heading.end() :]
    end = re.search(rf"^##{{1,{len(heading['level']) - 1}}} ", rest, re.MULTILINE)
    return (rest[: end.start()] if end else rest).strip()
