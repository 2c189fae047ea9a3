"""Values by name as text, such as ``neurons=1024,heads=6`` or ``conv1=3,5,fc=0``."""

from collections.abc import Mapping, Sequence
from typing import Any

from graphprune.errors import OptionError


def read(text: str) -> dict[str, tuple[str, ...]]:
    """Words by name; a word without a name belongs to the name before it.

    Raises:
        OptionError: if the text does not start with a name, or has one twice or without a value.
    """
    values: dict[str, tuple[str, ...]] = {}
    name = ""
    for word in (part.strip() for part in text.split(",")):
        start, equals, value = (part.strip() for part in word.rpartition("="))
        if not (value and (start or not equals)) or not (equals or name) or (equals and start in values):
            raise OptionError(f"{text!r} is not of the form NAME=VALUE,NAME=VALUE, with each name once")
        name = start if equals else name
        values[name] = (*values.get(name, ()), value)
    return values


def numbers(text: str, kind: type, several: bool = False) -> dict[str, Any]:
    """Numbers of a `kind`, int or float, by name; with `several`, tuples of them.

    Raises:
        OptionError: if the text has another form.
    """
    values: dict[str, Any] = {}
    for name, words in read(text).items():
        try:
            parsed = tuple(kind(word) for word in words)
        except ValueError as fault:
            sort = "whole numbers" if kind is int else "numbers"
            raise OptionError(f"{text!r} has {', '.join(words)} for {name}; expected {sort}") from fault
        if not several and len(parsed) > 1:
            raise OptionError(f"{text!r} has several values for {name}; expected one")
        values[name] = parsed if several else parsed[0]
    return values


def write(values: Mapping[str, Any]) -> str:
    """Text that `numbers` reads."""
    pairs = ((name, value if isinstance(value, Sequence) else (value,)) for name, value in values.items())
    return ",".join(f"{name}={','.join(map(str, value))}" for name, value in pairs)
