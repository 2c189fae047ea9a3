"""Names of an ONNX file for attributes of modules and for outputs of a saved program."""

import re
from collections.abc import Iterable

_OTHERS = re.compile(r"[^\w.+:/ -]")  # quotes and the like, which code and saved programs cannot hold in a name


def plain(name: str) -> str:
    """A name with ``_`` in place of what code and saved programs cannot hold."""
    return _OTHERS.sub("_", name)


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Plain names by name; each occurs once."""
    known: dict[str, str] = {}
    for name in names:
        text = plain(name)
        while text in known.values():
            text += "_"
        known[name] = text
    return known
