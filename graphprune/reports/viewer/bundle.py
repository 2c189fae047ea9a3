"""Puts a page together in one file: its parts, the library that lays out graphs, and the content."""

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
    """Write a page; it appears when it is complete.

    Raises:
        ExportError: if `path` exists and `force` is not set, or may not be written.
    """
    with new_file(path, force) as file:
        file.write_text(html(content), encoding="utf-8")


def html(content: Content) -> str:
    """The page as text. It may load nothing, and run nothing but its own scripts, whatever the content holds."""
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
    return PLACE.sub(lambda place: filled[place[1]], _asset("page.html"))  # at once: nothing filled in is looked at


def embedded(content: Content) -> str:
    """JSON that stands in a page: no text in it can end the script around it, or begin a comment."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"
