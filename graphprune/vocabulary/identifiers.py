"""Identifiers of tokens in configurations: fields that hold them, and the same fields with new ones."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from graphprune.errors import LoadError

#: Fields whose values are identifiers of tokens, in numbers, lists of any depth, or by name.
_FIELD = re.compile(
    r"(^|_)token_(id|ids|index|indices)$|^(bos|eos|pad|unk|sep|cls|mask)_(id|index)$"
    r"|^(begin_)?suppress_tokens$|^(bad|force)_words_ids$|^(lang|task)_to_id$"
)
_BY_PLACE = "forced_decoder_ids"  # pairs of a place and an identifier
Change = Callable[[str, int], int]


def changed(table: Mapping[str, Any], rows: int, change: Change, path: str = "") -> dict[str, Any]:
    """A configuration with changed identifiers; `change` takes the name of a field and an identifier.

    Parts of it with a vocabulary of another size than `rows`, as of codes of an audio, are as they were.
    """
    if table.get("vocab_size", rows) != rows:
        return dict(table)
    new = dict(table)
    for name, value in table.items():
        at = f"{path}{name}"
        if _FIELD.search(str(name)):
            new[name] = _each(value, partial(change, at))
        elif name == _BY_PLACE and isinstance(value, list):
            new[name] = [[place, change(at, number) if number is not None else None] for place, number in value]
        elif isinstance(value, Mapping):
            new[name] = changed(value, rows, change, f"{at}.")
    return new


def _each(value: Any, change: Callable[[int], int]) -> Any:
    """A value with every number changed; negative ones mark that there is none."""
    if isinstance(value, Mapping):
        return {name: _each(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_each(item, change) for item in value]
    return change(value) if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else value


def named(table: Mapping[str, Any], rows: int) -> dict[str, set[int]]:
    """Identifiers by the fields of a configuration that hold them."""
    fields: dict[str, set[int]] = {}

    def note(field: str, number: int) -> int:
        fields.setdefault(field, set()).add(number)
        return number

    changed(table, rows, note)
    return fields


def require_known(table: Mapping[str, Any], rows: int, known: Mapping[int, str], file: str) -> set[int]:
    """Identifiers in a configuration, all of which the tokenizer must know.

    Raises:
        LoadError: if it does not know one.
    """
    fields = named(table, rows)
    for field, numbers in fields.items():
        if strange := sorted(numbers - known.keys()):
            raise LoadError(
                f"{file}: {field} is {strange[0]}, which the tokenizer does not know: it has {len(known):,} tokens up "
                f"to {max(known):,}. Correct the field, or remove it"
            )
    return {number for numbers in fields.values() for number in numbers}


def renumbered(table: Mapping[str, Any], rows: int, retained: Mapping[int, int]) -> dict[str, Any]:
    """A configuration with the new identifiers of retained tokens; others, which no token has, are as they were."""
    return changed(table, rows, lambda _, number: retained.get(number, number))
