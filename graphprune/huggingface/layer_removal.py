"""Removal of entries from module lists: renumber names, shorten the module, and update its configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from graphprune.errors import ExportError, WriteBackError
from graphprune.huggingface.meta_models import as_text, flat, from_table, is_config, try_build
from graphprune.support.undo import Undo

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Path = tuple[str | int, ...]


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


def shorten_module(undo: Undo, module: nn.Module, entries: Sequence[str]) -> str:
    """Remove entries from the lists of a module, in place, and renumber the others.

    Its Hugging Face configuration is updated, too; returns the reason if that is not possible, else "".

    Raises:
        WriteBackError: if an entry is not in a ModuleList or Sequential.
    """
    for prefix, removed in removed_by_list(entries).items():
        container = module.get_submodule(prefix)
        if not isinstance(container, nn.ModuleList | nn.Sequential):
            raise WriteBackError(
                f"{prefix} is a {type(container).__name__}, expected a ModuleList or Sequential, from which entries "
                "can be removed; use the rewritten graph, program.module(), instead"
            )
        index_attributes = list(_indices(container))
        retained = [(old, part) for old, part in enumerate(container) if old not in removed]
        undo.set_item(vars(container), "_modules", {str(new): part for new, (_, part) in enumerate(retained)})
        new_index = {old: new for new, (old, _) in enumerate(retained)}
        for table, key in index_attributes:
            if table[key] in new_index:
                undo.set_item(table, key, new_index[table[key]])
    config = getattr(module, "config", None)
    return _shorten_config_of(undo, type(module).__name__, config, entries) if is_config(config) else ""


def _indices(container: nn.ModuleList | nn.Sequential) -> Iterator[tuple[dict[str, Any], str]]:
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

    The field with the number of entries is identified by building models. Lists with one item per entry, such as its
    kind, lose the items of the removed ones.

    Raises:
        ExportError: if there is no such field.
    """
    kind, table = type(config), json.loads(as_text(flat(config)))
    for prefix, removed in removed_by_list(entries).items():
        table = _without(kind, table, prefix, removed)
    return from_table(kind, table)


def _without(kind: type[PreTrainedConfig], table: dict[str, Any], prefix: str, removed: set[int]) -> dict[str, Any]:
    before = try_build(kind, json.dumps(table, sort_keys=True))
    if isinstance(before, str):
        raise ExportError(f"transformers cannot build a model from the configuration: {before}")
    indices = [name.removeprefix(f"{prefix}.").split(".")[0] for name in before.shapes if name.startswith(f"{prefix}.")]
    count = len({index for index in indices if index.isdigit()})
    names = {name: renumbered(name, [f"{prefix}.{i}" for i in removed]) for name in before.shapes}
    expected = {new: before.shapes[old] for old, new in names.items() if new is not None}
    for path in _positions_of(table, count):
        trial = _shortened(table, path, count, removed)
        summary = try_build(kind, json.dumps(trial, sort_keys=True))
        if not isinstance(summary, str) and summary.shapes == expected:
            return trial
    raise ExportError(
        f"no field of {kind.__name__} sets the number of entries of {prefix}, which has {count}; use destination free"
    )


def _positions_of(value: Any, count: int, path: Path = ()) -> Iterator[Path]:
    """Paths in a table at which it holds this number."""
    if type(value) is int and value == count:
        yield path
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _positions_of(item, count, (*path, key))


def _shortened(table: dict[str, Any], path: Path, count: int, removed: set[int]) -> dict[str, Any]:
    """The table with a smaller number at a path, and without the items of removed entries in its lists."""
    changed: dict[str, Any] = json.loads(json.dumps(table))
    inner: Any = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = count - len(removed)
    for key, value in changed.items():
        if key != path[0] and isinstance(value, list) and len(value) == count and _has_item_per_entry(key, value):
            changed[key] = [item for i, item in enumerate(value) if i not in removed]
    return changed


def _has_item_per_entry(key: str, values: list[Any]) -> bool:
    """Whether a list has one item per layer; lists of sizes or of color channels may be equally long by chance."""
    return "layer" in key or all(isinstance(value, str) for value in values)
