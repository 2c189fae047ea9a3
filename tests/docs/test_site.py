"""The built site is whole, and works when it is opened from a disk."""

import re
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tools.docs.hooks import on_page_content

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "tools" / "docs"
PAGES = sorted((DOCS / "pages").glob("*.md"))
WRAPPED = "[...document.querySelectorAll('table')].every((table) => table.closest('[class*=__scrollwrap]'))"
FAULTS = ROOT / "tests" / "tables.js"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site; a warning is an error."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(DOCS / "mkdocs.yml")]
    done = subprocess.run([*command, "--site-dir", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """An empty page of a browser that reaches nothing but files."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, offline=True)
    yield context.new_page()
    context.close()


def test_every_page_is_built(site: Path) -> None:
    assert {page.stem for page in PAGES} <= {path.stem for path in site.glob("*.html")}
    for page in site.glob("*.html"):
        assert "<!-- include" not in page.read_text(encoding="utf-8"), page.name


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"""<(script|img|iframe)[^>]* src=["']?https?:|<link[^>]*"stylesheet"[^>]*https?:""", text)


def test_search_finds_pages_on_a_disk(site: Path, tab: Any) -> None:
    faults: list[str] = []
    tab.on("pageerror", lambda fault: faults.append(str(fault)))
    tab.goto((site / "graph.html").as_uri())
    tab.keyboard.press("/")
    tab.keyboard.type("networkx")
    first = tab.locator(".md-search-result__item a").first
    first.wait_for(timeout=20_000)
    assert "networkx" in tab.inner_text(".md-search-result__list")
    linked = first.evaluate("(link) => link.href").partition("#")[0]
    assert linked in {page.as_uri() for page in site.glob("*.html")}
    assert faults == []


@pytest.mark.parametrize("wide", [375, 1280])
def test_tables_are_whole(site: Path, tab: Any, wide: int) -> None:
    tab.set_viewport_size({"width": wide, "height": 800})
    tables = 0
    for page in sorted(site.glob("*.html")):
        tab.goto(page.as_uri())
        tab.wait_for_function(WRAPPED)
        found = tab.evaluate(FAULTS.read_text(encoding="utf-8"))
        tables += found["tables"]
        assert found["faults"] == [], page.name
    assert tables > 20


def test_names_in_cells_are_not_broken() -> None:
    row = '<tr><td>plain words</td><td style="text-align: right">a-name of <code>--this</code> kind_of</td></tr>'
    whole = '<span class="whole">{}</span>'.format
    assert on_page_content(row) == row.replace("a-name", whole("a-name")).replace("--this", whole("--this")).replace(
        "kind_of", whole("kind_of")
    )
    assert on_page_content("<thead><p>not-in a-cell</p></thead>") == "<thead><p>not-in a-cell</p></thead>"


def test_the_library_is_the_one_that_is_pinned() -> None:
    vendor = DOCS / "pages" / "vendor"
    recorded = dict(line.split(": ", 1) for line in (vendor / "VERSIONS.txt").read_text().splitlines())
    assert recorded["file"] == f"sha256-{sha256((vendor / 'iframe-worker.min.js').read_bytes()).hexdigest()}"
    assert recorded["package"] in (ROOT / "tools" / "page" / "package-lock.json").read_text()
    assert "Permission is hereby granted" in (vendor / "iframe-worker.LICENSE.txt").read_text()
