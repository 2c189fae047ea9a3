"""Every code block of every page runs as printed, and the site is whole."""

import re
from pathlib import Path

import pytest

import graphprune
from tests.docs.blocks import INSTALLS, Reader, blocks
from tools.docs.draw import PICTURES, drawn
from tools.docs.hooks import whole

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "tools" / "docs"
PAGES = sorted((DOCS / "pages").glob("*.md"))
SLOW = {"deploy", "heal", "large", "onnx-in", "trim"}
LARGEST = 150_000  # bytes of a picture


def text_of(page: Path) -> str:
    return whole(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else [])
        for page in PAGES
        if blocks(text_of(page))
    ],
)
def test_all_code_of_a_page_runs(page: Path, reader: Reader) -> None:
    reader.follow(text_of(page))


def test_only_the_first_page_installs() -> None:
    assert {page.stem for page in PAGES for block in blocks(text_of(page)) if block.title == INSTALLS} == {"first"}


def test_the_reference_tells_of_every_public_name() -> None:
    text = (DOCS / "pages" / "api.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^::: graphprune\.(\w+)$", text, re.MULTILINE))
    assert told == {name for name in dir(graphprune) if _public(name)}


def _public(name: str) -> bool:
    source = (ROOT / "graphprune" / "public.py").read_text(encoding="utf-8")
    return f" as {name}\n" in source and not name.startswith("_")


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_as_drawn(name: str) -> None:
    assert (DOCS / "pages" / "pictures" / name).read_text(encoding="utf-8") == drawn(name)


def test_pictures_are_small() -> None:
    for path in (DOCS / "pages" / "pictures").iterdir():
        assert path.stat().st_size < LARGEST, path.name
