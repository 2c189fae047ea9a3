"""Tokens of some scripts of Unicode, such as Latin or Greek."""

from collections.abc import Iterable, Sequence
from typing import Any

from graphprune.errors import OptionError
from graphprune.support.packages import tokenizers


def of_scripts(tokens: Iterable[str], scripts: Sequence[str], surface: Any) -> set[str]:
    """Tokens with letters, all of which are of the scripts; `surface` is the text of a token.

    Raises:
        OptionError: if Unicode has no such script.
    """
    letter, listed = _without(r"\p{L}", "letters"), "".join(_class(script) for script in scripts)
    other = _without(f"[{listed}]", ", ".join(scripts))
    return {t for t in tokens if (text := surface(t)) != letter(text) and (rest := other(text)) == letter(rest)}


def _class(script: str) -> str:
    if not script.replace("_", "").isalpha():
        raise OptionError(f"{script!r} is no script of Unicode; write it as in Latin,Greek,Cyrillic,Han")
    return rf"\p{{{script}}}"


def _without(pattern: str, name: str) -> Any:
    """A function that removes the characters of a pattern from a text."""
    try:
        return tokenizers.normalizers.Replace(tokenizers.Regex(pattern), "").normalize_str
    except Exception as fault:  # the library raises Exception itself
        raise OptionError(f"{name}: Unicode has no such script; write it as in Latin,Greek,Cyrillic") from fault
