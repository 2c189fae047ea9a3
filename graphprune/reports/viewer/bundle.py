"""Bundle a page into one file: its assets, the library for graph layout, and the content."""

import json
import re
from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path

from graphprune.reports.viewer.content import Content
from graphprune.support.atomic_output import new_file

ASSETS = files("graphprune.reports.viewer") / "assets"
STYLES = ("base", "graph", "groups", "detail", "charts", "heat")
SCRIPTS = (
    "dom", "data", "state", "rove", "scale", "fold", "layout", "edges", "boxes", "graph", "moves", "save", "groups",
    "axes", "detail", "panels", "plan", "runs", "heat", "search", "main",
)  # fmt: skip
PLACE = re.compile(r"\{\{(\w+)\}\}")
LIBRARY = "vendor/dagre.min.js"


def write(content: Content, path: Path | str, *, force: bool = False) -> None:
    """Write a page; the file appears once it is complete.

    Raises:
        ExportError: if `path` exists and `force` is not set, or may not be written.
    """
    with new_file(path, force) as file:
        file.write_text(html(content), encoding="utf-8")


def html(content: Content) -> str:
    """Page as text. Its policy forbids loading anything, and running other than its own scripts."""
    library = _asset("vendor/dagre.LEGAL.txt") + _asset(LIBRARY)  # its license must be in every copy
    script = '"use strict";\n(() => {\n' + "\n".join(_asset(f"{name}.js") for name in SCRIPTS) + "\n})();"
    filled = {
        "policy": f"default-src 'none'; style-src 'unsafe-inline'; script-src {_hash(library)} {_hash(script)}",
        "title": escape(content["title"]),
        "style": "\n".join(_asset(f"{name}.css") for name in STYLES),
        "library": library,
        "script": script,
        "data": embedded(content),
    }
    return PLACE.sub(
        lambda place: filled[place[1]], _asset("page.html")
    )  # in one step, so that filled-in text is not searched


def embedded(content: Content) -> str:
    """JSON for a page, escaped so that no text can end the surrounding script or begin a comment."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"
