"""Names of modules and parameters that Python allows, but the code of a captured graph cannot hold."""

import unicodedata
from collections.abc import Iterator
from itertools import chain
from keyword import iskeyword

from torch import nn

from graphprune.errors import TraceError

_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates and line separators


def require_names(module: nn.Module) -> None:
    """Refuse names that torch would write into code that cannot be compiled, before any work.

    Raises:
        TraceError: if a module, parameter or buffer has such a name.
    """
    for prefix, name in _names(module):
        if reason := problem(name):
            path = f"{prefix}.{name}" if prefix else name
            raise TraceError(
                f"{type(module).__name__} has the name {path!r}, which {reason}, so no graph can refer to it; rename it"
            )


def is_plain_path(path: str) -> bool:
    """Whether every part of a dotted name can stand in the code of a graph; an empty path is the whole module."""
    return not any(problem(part) for part in path.split("."))


def problem(name: str) -> str:
    """The reason why one part of a dotted name cannot stand in the code of a graph; empty if it can."""
    if iskeyword(name):
        return "is a keyword of Python"
    if any(map(_is_unprintable, name)):
        return "has a quote, a backslash or a control character"
    if name.isidentifier() and unicodedata.normalize("NFKC", name) != name:
        return f"Python reads as {unicodedata.normalize('NFKC', name)!r}"
    if name == "__metadata__":
        return "is reserved in files of weights"
    return ""


def _is_unprintable(character: str) -> bool:
    """Whether a character ends a string literal or a line, or is none that a text file can hold."""
    point = ord(character)
    no_character = point & 0xFFFE == 0xFFFE or 0xFDD0 <= point <= 0xFDEF
    return character in '"\\' or no_character or unicodedata.category(character) in _UNPRINTABLE


def _names(module: nn.Module) -> Iterator[tuple[str, str]]:
    """All names of submodules, parameters and buffers, each with the path of its module."""
    for prefix, child in module.named_modules():
        for name in chain(child._modules, child._parameters, child._buffers):
            yield prefix, name
