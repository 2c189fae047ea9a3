"""Widths that a configuration leaves to defaults: fields that are None, and those that a class reads if it has them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, reduce
from math import inf
from typing import TYPE_CHECKING, Any

from graphprune.huggingface.meta_models import ModelSummary, from_table, on_meta, subconfigs
from graphprune.support.packages import transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Path = tuple[str | int, ...]
Try = Callable[[Mapping[str, Any]], ModelSummary | str]

#: Fields that describe what a model is for rather than how wide it is: never changed.
NO_WIDTH = re.compile(
    r"vocab|token|position|_ctx$|label|layer|depth|block|stage|image|patch|channels$|stride|kernel|window|seed"
    r"|version|dtype"
)
_PROBE = 88  # divisible by the common group and head counts, and unlikely to be a width in use


def explicit(kind: Any, table: dict[str, Any], summary: ModelSummary, build: Try) -> dict[str, Any]:
    """The table of the same model with explicit values of the widths that it leaves to defaults."""
    for path in dict.fromkeys([*_none(table), *_absent(kind, json.dumps(table, sort_keys=True))]):
        for size in _defaults(table, path, summary, build):
            candidate = placed(table, path, size)
            if build(candidate) == summary:
                table = candidate
                break
    return table


def placed(table: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy of the table with another value at a path."""
    changed: dict[str, Any] = json.loads(json.dumps(table))
    at(changed, path[:-1])[path[-1]] = value
    return changed


def at(table: Any, path: Path) -> Any:
    """The value at a path."""
    return reduce(lambda inner, key: inner[key], path, table)


def _none(table: Mapping[str, Any], path: Path = ()) -> Iterator[Path]:
    """Paths of the fields that are None and may be widths."""
    for key, value in table.items():
        if value is None and not NO_WIDTH.search(key):
            yield (*path, key)
        if isinstance(value, Mapping):
            yield from _none(value, (*path, key))


def _defaults(table: Mapping[str, Any], path: Path, summary: ModelSummary, build: Try) -> list[int]:
    """Candidates of the width that the class uses while the field has no value; none if the field is not a width."""
    trial = build(placed(table, path, _PROBE))
    if isinstance(trial, str) or trial.shapes.keys() != summary.shapes.keys():
        return []
    sizes = [zip(summary.shapes[key], trial.shapes[key], strict=False) for key in summary.shapes]
    pairs = dict.fromkeys(pair for shape in sizes for pair in shape if pair[0] != pair[1])
    numbers = [old for name, old in summary.numbers.items() if pairs and trial.numbers.get(name) == _PROBE]
    return list(dict.fromkeys([*(_PROBE * old // new for old, new in pairs), *map(int, filter(_finite, numbers))]))


def _finite(number: float) -> bool:
    return 0 < number < inf


@lru_cache(maxsize=64)
def _absent(kind: Any, text: str) -> tuple[Path, ...]:
    """Paths of the fields that the class reads while it is built, but the configuration lacks."""
    config = from_table(kind, json.loads(text))
    with _recorded() as reads:
        on_meta(config)
    places = [(path, type(part)) for path, part in subconfigs(config)]
    return tuple(
        (*path, name) for owner, name in reads for path, part in places if part is owner and not NO_WIDTH.search(name)
    )


@contextmanager
def _recorded() -> Iterator[dict[tuple[type, str], None]]:
    """Record the type of configuration and the name of every attribute that is read in vain."""
    reads: dict[tuple[type, str], None] = {}

    def missing(config: PreTrainedConfig, name: str) -> Any:
        if not name.startswith("_"):
            reads[type(config), name] = None
        raise AttributeError(f"{type(config).__name__!r} object has no attribute {name!r}")

    base: Any = transformers.PreTrainedConfig
    base.__getattr__ = missing
    try:
        yield reads
    finally:
        del base.__getattr__
