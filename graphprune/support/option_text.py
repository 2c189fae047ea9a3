"""Options as text: ``name{key=value,key=value}``; reading a written value restores it."""

from ast import literal_eval
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from graphprune.errors import PipelineError

OPENING, CLOSING, QUOTES = "{[(", "}])", "\"'"
BEFORE_VALUES = "=;[{(,|"  # after these characters a quote opens a string; inside a word it is an apostrophe
SPECIAL = frozenset(",;|{}[]()=\"'\\\n\r\t")
#: Python literals of words; 1e999 is read as infinity.
WORDS = {"true": "True", "false": "False", "none": "None", "inf": "1e999", "-inf": "-1e999"}


def split(text: str, separators: str) -> list[str]:
    """Split a text at separators outside brackets and quotes, and strip the parts.

    Raises:
        PipelineError: if brackets or quotes are not closed.
    """
    parts, start = [], 0
    for at, character in _outside(text):
        if character in separators:
            parts.append(text[start:at].strip())
            start = at + 1
    return [*parts, text[start:].strip()]


def _outside(text: str) -> Iterator[tuple[int, str]]:
    """Characters of a text outside brackets and quotes, with their positions."""
    open_brackets, quote, last = 0, "", "="
    skipped = False
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote and not skipped else quote
            skipped = character == "\\" and not skipped
        elif character in QUOTES and last in BEFORE_VALUES:
            quote = character
        else:
            open_brackets += (character in OPENING) - (character in CLOSING)
            if open_brackets < 0:
                break
            if not open_brackets:
                yield at, character
        last = last if character.isspace() else character
    if open_brackets or quote:
        raise PipelineError(f"brackets or quotes are not closed in {text!r}")


def read(text: str, kind: Any) -> Any:
    """Read the value of a text for a field of this type; ``;`` separates several values, strings may be quoted.

    Raises:
        PipelineError: if a quoted string cannot be read.
    """
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        return () if text == "()" else tuple(read(part, inner) for part in split(text, ";"))
    if text[:1] in QUOTES and text:
        return _literal(text)
    if kind is str:
        return text
    try:
        return literal_eval(WORDS.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text


def _literal(text: str) -> str:
    try:
        return str(literal_eval(text))
    except (ValueError, SyntaxError) as fault:
        raise PipelineError(f"{text} is no string that can be read; close its quotes") from fault


def write(value: Any, kind: Any) -> str:
    """Write a value as text that `read` restores."""
    if isinstance(value, tuple):
        inner = get_args(kind)[0] if get_args(kind) else Any
        return ";".join(write(one, inner) for one in value) or "()"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        plain = value and value == value.strip() and not SPECIAL & set(value) and read(value, kind) == value
        return value if plain else repr(value)
    return repr(value)
