"""Fields of a config that say how the entries of a module list are built: their number, kinds and exceptions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

from torch import nn

from graphprune.errors import ExportError
from graphprune.huggingface.default_fields import Path, at, placed
from graphprune.huggingface.list_entries import index_attributes
from graphprune.huggingface.meta_models import describe, from_table, on_meta, reason

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Table = dict[str, Any]
#: For every entry its parameters with their shapes, and its modules with their types and settings.
Entries = list[tuple[object, object]]


def shortened(kind: type[PreTrainedConfig], table: Table, prefix: str, removed: set[int]) -> Table:
    """The table of a model without these entries of a list, in which all others are built as before.

    Raises:
        ExportError: if no fields give such a model.
    """
    before = _built(kind, table)
    if isinstance(before, str):
        raise ExportError(f"transformers cannot build a model from the configuration: {before}")
    count = len(_list(before, prefix))
    search = _Search(kind, prefix, before, [i for i in range(count) if i not in removed])
    trials = [(path, _counted(table, path, search.retained, count)) for path in _positions_of(table, count)]
    for path, trial in trials:
        if search.wrong(trial) is not None and (result := search.solved(trial, path)) is not None:
            return result
    for path, trial in trials:  # an exception may be out of range, so that the config is invalid with fewer entries
        for variant in search.variants(trial, path, 1) if search.wrong(trial) is None else ():
            if search.wrong(variant) is not None and (result := search.solved(variant, path)) is not None:
                return result
    sets = f"sets the number of entries of {prefix}, which has {count}"
    raise ExportError(f"no field of {kind.__name__} {search.rejection or sets}; use destination free")


@dataclass
class _Search:
    """Search for fields with which the retained entries are built as they were."""

    kind: type[PreTrainedConfig]
    prefix: str
    before: nn.Module
    retained: list[int]
    rejection: str = ""
    known: dict[str, tuple[int, int] | None] = field(default_factory=dict)

    @cached_property
    def expected(self) -> Entries:
        """The retained entries in the original."""
        entries = _entries(_list(self.before, self.prefix), self.indices)
        return [entries[i] for i in self.retained]

    @cached_property
    def indices(self) -> set[str]:
        """Names of the attributes in which the original holds the index of an entry."""
        return {key for _, key in index_attributes(_list(self.before, self.prefix))}

    @cached_property
    def elsewhere(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of all parameters and buffers outside the list."""
        return _outside(self.before, self.prefix)

    def solved(self, table: Table, counted: Path) -> Table | None:
        """The table with changed fields; None if some entry still differs in its parameters."""
        while self.wrong(table) not in (None, (0, 0)) and (best := self.improved(table, counted)) is not None:
            table = best
        if (wrong := self.wrong(table)) is not None and not wrong[0]:
            return table
        self.rejection = f"builds the other entries of {self.prefix} as they are now"
        return None

    def wrong(self, table: Table) -> tuple[int, int] | None:
        """Numbers of entries that differ in parameters, and in settings; None if the model differs otherwise."""
        text = json.dumps(table, sort_keys=True)
        if text not in self.known:
            self.known[text] = self._wrong(table)
        return self.known[text]

    def _wrong(self, table: Table) -> tuple[int, int] | None:
        model = _built(self.kind, table)
        if isinstance(model, str) or _outside(model, self.prefix) != self.elsewhere:
            return None
        entries = _list(model, self.prefix)
        if len(entries) != len(self.expected):
            return None
        pairs = list(zip(_entries(entries, self.indices), self.expected, strict=True))
        return sum(new[0] != old[0] for new, old in pairs), sum(new[1] != old[1] for new, old in pairs)

    def improved(self, table: Table, counted: Path) -> Table | None:
        """The best table with another value of one field or two; None if none is better."""
        current = self.wrong(table)
        options = {
            path: values
            for path, values in self.options(table, counted).items()
            if any(self.wrong(placed(table, path, value)) != current for value in values)
        }
        further = {path: self._numbers(at(table, path)) for path in options}
        for tables in (_singles(table, options), _pairs(table, options), _singles(table, further)):
            better = [trial for trial in tables if self._less(trial, table)]
            if better:
                return min(better, key=lambda trial: self.wrong(trial) or (0, 0))
        return None

    def _less(self, trial: Table, table: Table) -> bool:
        less, more = self.wrong(trial), self.wrong(table)
        return less is not None and more is not None and less < more

    def variants(self, table: Table, counted: Path, most: int) -> Iterator[Table]:
        """Tables with another value of one field, of which at most so many are tried."""
        yield from _singles(table, {path: values[:most] for path, values in self.options(table, counted).items()})

    def options(self, table: Table, counted: Path) -> dict[Path, list[Any]]:
        """Values to try for every field in the same part of the config as the number of entries."""
        names = [i for i, key in enumerate(counted) if isinstance(key, str)]
        owner = counted[: names[-1]]
        fields = {(*owner, key): value for key, value in at(table, owner).items() if key != counted[names[-1]]}
        return {path: values for path, value in fields.items() if (values := list(self._values(value)))}

    def _values(self, value: Any) -> Iterator[Any]:
        """Values by which a field may describe the retained entries: a threshold, a period, a pattern, or indices."""
        if type(value) is int and 0 <= value <= max(self.retained) + 1:
            yield from (v for v in dict.fromkeys((sum(i < value for i in self.retained), 1)) if v != value)
        if isinstance(value, str) and len(value) == len(_list(self.before, self.prefix)):
            yield "".join(value[i] for i in self.retained)
        if isinstance(value, list) and all(type(item) is int for item in value):
            classes = [entry[0] for entry in self.expected]
            yield [new for new, old in enumerate(self.retained) if old in value]
            yield from ([i for i, c in enumerate(classes) if c == kind] for kind in _distinct(classes))
        if isinstance(value, list) and value:
            yield [value[i % len(value)] for i in self.retained]

    def _numbers(self, value: Any) -> list[int]:
        """All numbers up to that of the entries, in the place of a number."""
        return [v for v in range(len(self.retained) + 1) if v != value] if type(value) is int else []


def _singles(table: Table, options: Mapping[Path, list[Any]]) -> Iterator[Table]:
    for path, values in options.items():
        yield from (placed(table, path, value) for value in values)


def _pairs(table: Table, options: Mapping[Path, list[Any]]) -> Iterator[Table]:
    for (one, firsts), (other, seconds) in combinations(options.items(), 2):
        for first in firsts[:3]:
            yield from (placed(placed(table, one, first), other, second) for second in seconds[:3])


def _distinct(values: Iterable[object]) -> list[object]:
    distinct: list[object] = []
    for value in values:
        distinct.extend([] if value in distinct else [value])
    return distinct


def _built(kind: type[PreTrainedConfig], table: Table) -> nn.Module | str:
    try:
        return on_meta(from_table(kind, table))
    except ExportError:
        raise
    except Exception as fault:  # a class may validate its config with any exception
        return reason(fault)


def _list(model: nn.Module, prefix: str) -> list[nn.Module]:
    """The entries of a list of a model; none if the model has no list of this name."""
    try:
        return list(model.get_submodule(prefix).children())
    except AttributeError:
        return []


def _outside(model: nn.Module, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in describe(model).shapes.items() if not name.startswith(f"{prefix}.")}


def _entries(entries: list[nn.Module], indices: set[str]) -> Entries:
    return [(describe(entry).shapes, _settings(entry, indices)) for entry in entries]


def _settings(entry: nn.Module, indices: set[str]) -> list[object]:
    """Types and plain attributes of the modules of an entry, without its index."""
    return [
        (path, type(part), {k: v for k, v in vars(part).items() if _plain(v) and k not in indices})
        for path, part in entry.named_modules()
    ]


def _plain(value: object) -> bool:
    """Whether an attribute is a setting; floats are often rates of dropout, which depend on the number of layers."""
    return isinstance(value, bool | int | str | None)


def _positions_of(value: Any, count: int, path: Path = ()) -> Iterator[Path]:
    """Paths in a table at which it holds this number."""
    if type(value) is int and value == count:
        yield path
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _positions_of(item, count, (*path, key))


def _counted(table: Table, path: Path, retained: list[int], count: int) -> Table:
    """The table with a smaller number at a path, and without the items of removed entries in the lists around it."""
    changed = placed(table, path, len(retained))
    owner = at(changed, path[:-1])
    for key, value in owner.items() if isinstance(owner, Mapping) else ():
        if isinstance(value, list) and len(value) == count and _has_item_per_entry(key, value):
            owner[key] = [value[i] for i in retained]
    return changed


def _has_item_per_entry(key: str, values: list[Any]) -> bool:
    """Whether a list has one item per layer; lists of sizes or of color channels may be equally long by chance."""
    return "layer" in key or all(isinstance(value, str) for value in values)
