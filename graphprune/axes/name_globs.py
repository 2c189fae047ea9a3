"""Globs of parameter names, and the near names where one matches nothing."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

NEAR = 3


def kind(name: str) -> str:
    """The name of a parameter without layer numbers."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def matching(glob: str, names: Iterable[str]) -> list[str]:
    """The names that match a glob, or are it."""
    return [name for name in names if name == glob or fnmatchcase(name, glob)]


def hint(glob: str, names: Iterable[str]) -> str:
    """The end of a message about a glob that matches none of some names: near ones, or where they are listed."""
    names = list(names)
    near = get_close_matches(glob, names, NEAR) or _corrected(glob, list(dict.fromkeys(map(kind, names))))
    return f"did you mean {' or '.join(near)}?" if near else "`graphprune inspect MODEL` lists them"


def _corrected(glob: str, kinds: list[str]) -> list[str]:
    """The kinds of names that match once each misspelled word of the glob is the nearest part of a name."""
    parts = {part for name in kinds for part in name.split(".") if part != "*"}
    for word in filter(None, re.split(r"[*?\[\].:\d]+", glob)):
        if not any(word in part for part in parts):
            near = get_close_matches(word, parts, 1)
            glob = glob.replace(word, near[0]) if near else glob
    return matching(glob, kinds)[:NEAR]
