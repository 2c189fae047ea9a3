"""Entries taken out of lists of modules: what happens to names, to the module itself, and to a configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from graphprune.errors import ExportError, WriteBackError
from graphprune.huggingface.meta_models import as_text, built, flat, from_table, is_config
from graphprune.support.undo import Undo

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Path = tuple[str | int, ...]


def lists(entries: Sequence[str]) -> dict[str, set[int]]:
    """The indices that go from each list: of ``model.layers.3`` index 3 of ``model.layers``."""
    found: dict[str, set[int]] = {}
    for entry in entries:
        prefix, _, index = entry.rpartition(".")
        found.setdefault(prefix, set()).add(int(index))
    return found


def renumbered(name: str, entries: Sequence[str]) -> str | None:
    """The name of a parameter or module once these entries are gone; None if it is in one of them."""
    for prefix, gone in lists(entries).items():
        index, dot, rest = name.removeprefix(f"{prefix}.").partition(".")
        if name.startswith(f"{prefix}.") and index.isdigit():
            if int(index) in gone:
                return None
            name = f"{prefix}.{int(index) - sum(i < int(index) for i in gone)}{dot}{rest}"
    return name


def shorten_module(undo: Undo, module: nn.Module, entries: Sequence[str]) -> str:
    """Take entries out of the lists of a module, in place, and renumber the others.

    A Hugging Face configuration in it follows, if it can; returns why it cannot ("" if it did).

    Raises:
        WriteBackError: if an entry is not one of a list.
    """
    for prefix, gone in lists(entries).items():
        container = module.get_submodule(prefix)
        if not isinstance(container, nn.ModuleList | nn.Sequential):
            raise WriteBackError(
                f"{prefix} is a {type(container).__name__}, not a list of modules, so nothing can be taken out of it; "
                "use the rewritten graph, program.module(), instead"
            )
        known = list(_indices(container))
        kept = [(old, part) for old, part in enumerate(container) if old not in gone]
        undo.set_item(vars(container), "_modules", {str(new): part for new, (_, part) in enumerate(kept)})
        fresh = {old: new for new, (old, _) in enumerate(kept)}
        for table, key in known:
            if table[key] in fresh:
                undo.set_item(table, key, fresh[table[key]])
    config = getattr(module, "config", None)
    return _shorten_config_of(undo, type(module).__name__, config, entries) if is_config(config) else ""


def _indices(container: nn.ModuleList | nn.Sequential) -> Iterator[tuple[dict[str, Any], str]]:
    """The attributes, as tables and keys, in which the parts of the entries of a list hold the entry's place in it.

    They are whole numbers that are the place in every entry which has them, and in two at least.
    """
    found: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
    for place, entry in enumerate(container):
        for path, part in entry.named_modules():
            for key, value in vars(part).items():
                if type(value) is int:
                    found.setdefault((path, key), []).append((place, vars(part)))
    for (_, key), uses in found.items():
        if len(uses) > 1 and all(table[key] == place for place, table in uses):
            yield from ((table, key) for _, table in uses)


def _shorten_config_of(undo: Undo, kind: str, config: PreTrainedConfig, entries: Sequence[str]) -> str:
    named = from_table(type(config), {**json.loads(as_text(config)), "architectures": [kind]})
    try:
        new = shorten_config(named, entries)
    except ExportError as fault:
        return str(fault)
    for name, value in vars(new).items():
        if type(value) in (int, list) and name in vars(config) and vars(config)[name] != value:
            undo.set_item(vars(config), name, value)
    return ""


def shorten_config(config: PreTrainedConfig, entries: Sequence[str]) -> PreTrainedConfig:
    """A copy with which the stock class builds the model without these entries.

    Which number counts the entries of a list is found by trying; lists that say something of every entry, such as
    its kind, lose theirs.

    Raises:
        ExportError: if there is no such number.
    """
    kind, table = type(config), json.loads(as_text(flat(config)))
    for prefix, gone in lists(entries).items():
        table = _without(kind, table, prefix, gone)
    return from_table(kind, table)


def _without(kind: type[PreTrainedConfig], table: dict[str, Any], prefix: str, gone: set[int]) -> dict[str, Any]:
    before = built(kind, json.dumps(table, sort_keys=True))
    if isinstance(before, str):
        raise ExportError(f"transformers cannot build a model from the configuration: {before}")
    here = [name.removeprefix(f"{prefix}.").split(".")[0] for name in before.shapes if name.startswith(f"{prefix}.")]
    count = len({index for index in here if index.isdigit()})
    names = {name: renumbered(name, [f"{prefix}.{i}" for i in gone]) for name in before.shapes}
    expected = {new: before.shapes[old] for old, new in names.items() if new is not None}
    for path in _counts(table, count):
        trial = _shortened(table, path, count, gone)
        made = built(kind, json.dumps(trial, sort_keys=True))
        if not isinstance(made, str) and made.shapes == expected:
            return trial
    raise ExportError(
        f"no field of {kind.__name__} says that {prefix} has {count} entries, so none can say that it has fewer; "
        "use destination free"
    )


def _counts(value: Any, count: int, path: Path = ()) -> Iterator[Path]:
    """Where a table holds this number."""
    if type(value) is int and value == count:
        yield path
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _counts(item, count, (*path, key))


def _shortened(table: dict[str, Any], path: Path, count: int, gone: set[int]) -> dict[str, Any]:
    """The table with a smaller number at a path, and without what lists say of the entries that are gone."""
    changed: dict[str, Any] = json.loads(json.dumps(table))
    inner: Any = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = count - len(gone)
    for key, value in changed.items():
        if key != path[0] and isinstance(value, list) and len(value) == count and _is_of_entries(key, value):
            changed[key] = [item for i, item in enumerate(value) if i not in gone]
    return changed


def _is_of_entries(key: str, values: list[Any]) -> bool:
    """Does a list say something of every layer? Lists of sizes or of colours may be equally long."""
    return "layer" in key or all(isinstance(value, str) for value in values)
