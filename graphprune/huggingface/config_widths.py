"""Which fields of a Hugging Face config control which shapes, found by building models and looking."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import inf
from typing import TYPE_CHECKING, Any

from graphprune.errors import ExportError
from graphprune.huggingface.meta_models import Built, Shapes, as_text, built, flat, from_table

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Path = tuple[str | int, ...]
Place = tuple[str, int]

#: Fields that say what a model means rather than how wide it is.
_MEANING = re.compile(
    r"vocab|token|position|_ctx$|label|layer|depth|block|stage|image|patch|channels$|stride|kernel|window|seed"
    r"|version|dtype"
)
_LARGEST_SET = 3


@dataclass(frozen=True)
class _Try:
    """A config under trial, as plain values, and the model that it makes."""

    table: Mapping[str, Any]
    made: Built


def fit(config: PreTrainedConfig, shapes: Shapes, trials: float = inf) -> PreTrainedConfig:
    """A copy of `config` whose stock class has exactly these parameter shapes.

    `shapes` may leave out names (of tied weights); buffers may be among them, and names that the class does not
    have, such as those of constants in a graph, are passed over. No more than `trials` configs are tried.

    Raises:
        ExportError: if no field makes some of these shapes; names the first.
    """
    found = _search(config, shapes, trials)
    if isinstance(found, str):
        raise ExportError(found)
    return from_table(type(config), found.table)


def expressible(config: PreTrainedConfig, before: Shapes, after: Shapes) -> str | None:
    """Why no config makes the shapes `after` of those `before`; None if one does."""
    changed = {name: shape for name, shape in after.items() if before.get(name) != shape}
    found = _search(config, {**before, **changed})
    return found if isinstance(found, str) else None


def _search(config: PreTrainedConfig, shapes: Shapes, trials: float = inf) -> _Try | str:
    """Change fields, one kind of width at a time, until every shape is right."""
    start = _start(config)
    shapes = {name: shape for name, shape in shapes.items() if name in start.made.shapes}
    if fault := _misfit(config, start.made, shapes):
        return fault
    search = _Search(type(config), start, shapes, trials)
    now, explicit = start, False
    while bad := search.wrong(now.made):
        better = search.better(now, bad)
        if better is None and not explicit:
            better, explicit = search.explicit(now), True
        if better is None:
            return search.reason(bad)
        now = better
    return now


def _start(config: PreTrainedConfig) -> _Try:
    text = as_text(flat(config))
    made = built(type(config), text)
    if isinstance(made, str):
        raise ExportError(f"transformers cannot build a model from config.json: {made}; repair the source folder")
    return _Try(json.loads(text), made)


def _misfit(config: PreTrainedConfig, made: Built, shapes: Shapes) -> str | None:
    """Why these cannot be shapes of this class at any width."""
    model = (config.architectures or ["the model"])[0]
    if not shapes:
        return f"none of the names is that of a parameter of {model}; they must be those of the stock class"
    for name, shape in shapes.items():
        if len(shape) != len(made.shapes[name]):
            return f"{name} has shape {shape}, {model} gives it {made.shapes[name]}: a different number of dimensions"
    return None


@dataclass
class _Search:
    """The moves from one config to the next, judged by what they make right and what they break."""

    kind: type[PreTrainedConfig]
    start: _Try
    shapes: Shapes
    trials: float
    refused: str = ""

    def wrong(self, made: Built) -> dict[Place, tuple[int, int]]:
        """The dimensions that are not yet as asked for: (size now, size asked)."""
        return {
            (name, dim): (have, want)
            for name, shape in self.shapes.items()
            for dim, (have, want) in enumerate(zip(made.shapes[name], shape, strict=True))
            if have != want
        }

    def better(self, now: _Try, bad: Mapping[Place, tuple[int, int]]) -> _Try | None:
        """A config that makes some wrong dimension right and no right one wrong; of those with fewest changes the best.

        What makes most dimensions right is likeliest what was meant: heads rather than their size.
        """
        kinds = {pair: self._fields(now, *pair) for pair in dict.fromkeys(bad.values())}
        for size in range(1, _LARGEST_SET + 1):
            moves = [(some, *pair) for pair, fields in kinds.items() for some in combinations(fields, size)]
            trials = [trial for move in moves if (trial := self._try(_scaled(now.table, *move)))]
            gains = [trial for trial in trials if self._gains(trial, bad, now)]
            if gains:
                return min(gains, key=lambda trial: len(self.wrong(trial.made)))
        return None

    def explicit(self, now: _Try) -> _Try | None:
        """The same model with widths spelled out that the config leaves to its class."""
        table = now.table
        for name in [name for name, value in table.items() if value is None and not _MEANING.search(name)]:
            size = self._default(now, name)
            if size is not None:
                table = {**table, name: size}
        trial = self._try(table) if table != now.table else None
        return trial if trial is not None and trial.made.shapes == now.made.shapes else None

    def reason(self, bad: Mapping[Place, tuple[int, int]]) -> str:
        """Why the search ended, by the first dimension that nothing makes right."""
        (name, dim), (have, want) = next(iter(bad.items()))
        said = f"no field of {self.kind.__name__} makes dimension {dim} of {name} {want} instead of {have}"
        if self._uneven(name):
            return f"{said}, since its layers differ in width; use destination per-layer or free"
        return f"{said}{self.refused and f' ({self.refused})'}; use destination free"

    def _uneven(self, name: str) -> bool:
        """Do the counterparts of this parameter in other layers, once equally wide, now differ?"""
        same = [other for other in self.shapes if re.sub(r"\d+", "*", other) == re.sub(r"\d+", "*", name)]
        before = {self.start.made.shapes[other] for other in same}
        return len(before) == 1 and len({self.shapes[other] for other in same}) > 1

    def _fields(self, now: _Try, have: int, want: int) -> list[Path]:
        """The fields that have an effect when scaled by want / have, or are refused alone."""
        found = [path for path, value in _integers(now.table) if value * want >= have and value * want % have == 0]
        made = {path: self._built(_scaled(now.table, (path,), have, want)) for path in found}
        return [path for path in found if isinstance(made[path], str) or made[path] != now.made]

    def _default(self, now: _Try, name: str) -> int | None:
        """The width that the class takes where the field is None, if it is a width."""
        odd = 88  # divisible by the common group and head counts, and by no chance a width in use
        made = self._built({**now.table, name: odd})
        if isinstance(made, str) or made.shapes.keys() != now.made.shapes.keys():
            return None
        sizes = [zip(now.made.shapes[key], made.shapes[key], strict=False) for key in made.shapes]
        pairs = {pair for shape in sizes for pair in shape if pair[0] != pair[1]}
        return pairs.pop()[0] if len(pairs) == 1 and next(iter(pairs))[1] == odd else None

    def _gains(self, trial: _Try, bad: Mapping[Place, tuple[int, int]], now: _Try) -> bool:
        made = trial.made
        if made.shapes.keys() != now.made.shapes.keys():
            return False
        if any(len(made.shapes[name]) != len(shape) for name, shape in self.shapes.items()):
            return False
        left = self.wrong(made).keys()
        return left < bad.keys() and self._means_the_same(trial)

    def _means_the_same(self, trial: _Try) -> bool:
        """Would the reloaded class compute with the same numbers, and the same tables that it does not save?"""
        start, made = self.start.made, trial.made
        tables = [name for name in start.transient - self.shapes.keys() if start.shapes[name] != made.shapes[name]]
        numbers = [name for name, number in start.numbers.items() if made.numbers.get(name) != number]
        if name := next(iter([*tables, *numbers]), None):
            old = start.shapes[name] if tables else start.numbers[name]
            new = made.shapes[name] if tables else made.numbers.get(name)
            self.refused = f"a config that does would also change {name} from {old} to {new}"
        return not tables and not numbers

    def _try(self, table: Mapping[str, Any]) -> _Try | None:
        made = self._built(table)
        if isinstance(made, str):
            self.refused = f"{self.kind.__name__}: {made}"
            return None
        return _Try(table, made)

    def _built(self, table: Mapping[str, Any]) -> Built | str:
        self.trials -= 1
        if self.trials < 0:
            return "too many combinations of fields to try them all"
        return built(self.kind, json.dumps(table, sort_keys=True))


def _integers(value: Any, path: Path = ()) -> Iterator[tuple[Path, int]]:
    if any(isinstance(key, str) and _MEANING.search(key) for key in path[-1:]):
        return
    if isinstance(value, int) and not isinstance(value, bool):
        if value > 0:
            yield path, value
        return
    items: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        yield from _integers(item, (*path, key))


def _scaled(table: Mapping[str, Any], paths: Iterable[Path], have: int, want: int) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(table))
    for path in paths:
        inner: Any = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = inner[path[-1]] * want // have
    return changed
