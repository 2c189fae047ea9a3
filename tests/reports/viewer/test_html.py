"""A page is one file that loads nothing and runs nothing but its own scripts."""

import json
import re
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import graphprune as gp
from graphprune.cli.commands import app
from graphprune.errors import ExportError
from graphprune.reports.viewer.bundle import ASSETS, SCRIPTS, STYLES, embedded, html

ROOT = Path(__file__).parents[3]
EVIL = "</script><script>alert(1)</script><!-- & {{script}} \u2028"


@given(st.recursive(st.text() | st.integers() | st.none(), st.lists, max_leaves=5))
def test_what_is_embedded_is_what_is_read(thing: object) -> None:
    text = embedded({"thing": thing})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"thing": thing}


def test_names_cannot_break_out(network: gp.Program, tmp_path: Path) -> None:
    shown = gp.view(network, output=tmp_path / "a.html", title=EVIL)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert text.count("<script") == 3 and text.count("</script>") == 3
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None and json.loads(data[1])["title"] == EVIL == shown["title"]


def test_nothing_is_loaded(network: gp.Program, tmp_path: Path) -> None:
    gp.view(network, output=tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.search(r"""\b(src|href)=|url\(|@import|\bimport\(|\bfetch\(|XMLHttp""", text)


def test_every_asset_is_in_the_page() -> None:
    page = html({"title": "a"})
    named = {f"{name}.js" for name in SCRIPTS} | {f"{name}.css" for name in STYLES} | {"page.html", "vendor"}
    assert {asset.name for asset in ASSETS.iterdir()} == named
    assert "Permission is hereby granted" in page, "the licence of the library wants to be in every copy"


def test_the_library_is_the_one_that_is_pinned() -> None:
    vendor = ASSETS / "vendor"
    told = dict(line.split(": ", 1) for line in (vendor / "VERSIONS.txt").read_text().splitlines())
    assert told["file"] == f"sha256-{sha256((vendor / 'dagre.min.js').read_bytes()).hexdigest()}"
    lock = json.loads((ROOT / "tools" / "page" / "package-lock.json").read_text())
    pinned = lock["packages"]["node_modules/@dagrejs/dagre"]
    assert told["package"] == pinned["integrity"] and pinned["version"] in told["dagre.min.js"]
    assert "MIT" in told["dagre.min.js"] and "Chris Pettitt" in (vendor / "dagre.LICENSE.txt").read_text()


def test_a_page_is_not_overwritten_unasked(network: gp.Program, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("mine")
    with pytest.raises(ExportError, match="--force"):
        gp.view(network, output=tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text() == "mine"
    gp.view(network, output=tmp_path / "a.html", force=True)
    assert "<!doctype html>" in (tmp_path / "a.html").read_text()


def test_the_command_writes_the_page(folder: Path, run: Path, tmp_path: Path) -> None:
    words = ["view", str(folder), "--plan", str(run), "--report", str(run), "-o", str(tmp_path / "a.html"), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["runs"] == 1 and told["bytes"] == (tmp_path / "a.html").stat().st_size
    assert f"<title>{folder.name} · graphprune</title>" in (tmp_path / "a.html").read_text(encoding="utf-8")
