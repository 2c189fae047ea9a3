"""Entries of module lists: names after a removal, and attributes that hold an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn


def removed_by_list(entries: Sequence[str]) -> dict[str, set[int]]:
    """Removed indices by list: index 3 of ``model.layers`` for the entry ``model.layers.3``."""
    removed: dict[str, set[int]] = {}
    for entry in entries:
        prefix, _, index = entry.rpartition(".")
        removed.setdefault(prefix, set()).add(int(index))
    return removed


def renumbered(name: str, entries: Sequence[str]) -> str | None:
    """The name of a parameter or module after the removal of these entries; None if it is in one of them."""
    for prefix, removed in removed_by_list(entries).items():
        index, dot, rest = name.removeprefix(f"{prefix}.").partition(".")
        if name.startswith(f"{prefix}.") and index.isdigit():
            if int(index) in removed:
                return None
            name = f"{prefix}.{int(index) - sum(i < int(index) for i in removed)}{dot}{rest}"
    return name


def index_attributes(container: Iterable[nn.Module]) -> Iterator[tuple[dict[str, Any], str]]:
    """Attributes, as tables and keys, in which submodules hold the index of their entry in the list.

    An integer attribute counts if at least two entries have it, and it equals the index in every one that does.
    """
    attributes: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
    for index, entry in enumerate(container):
        for path, part in entry.named_modules():
            for key, value in vars(part).items():
                if type(value) is int:
                    attributes.setdefault((path, key), []).append((index, vars(part)))
    for (_, key), uses in attributes.items():
        if len(uses) > 1 and all(table[key] == index for index, table in uses):
            yield from ((table, key) for _, table in uses)
