"""Options as text: ``name{key=value,key=value}``, with values that are read back as they were written."""

from ast import literal_eval
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from graphprune.errors import PipelineError

OPENING, CLOSING, QUOTES = "{[(", "}])", "\"'"
BEFORE_VALUES = "=;[{(,|"  # behind these characters a quote opens a string; inside a word it is an apostrophe
SPECIAL = frozenset(",;|{}[]()=\"'\\\n\r\t")
#: Python literals of words; 1e999 is read as infinity.
WORDS = {"true": "True", "false": "False", "none": "None", "inf": "1e999", "-inf": "-1e999"}


def split(text: str, separators: str) -> list[str]:
    """The stripped parts of a text between separators that lie outside brackets and quotes.

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
    """The characters of a text that lie outside brackets and quotes, with their positions."""
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
    """The value of a text for a field of this type: several values stand between ``;``, strings may be quoted.

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
    """The text of a value, which `read` takes back."""
    if isinstance(value, tuple):
        inner = get_args(kind)[0] if get_args(kind) else Any
        return ";".join(write(one, inner) for one in value) or "()"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        plain = value and value == value.strip() and not SPECIAL & set(value) and read(value, kind) == value
        return value if plain else repr(value)
    return repr(value)
