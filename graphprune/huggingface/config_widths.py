"""Fields of a Hugging Face config that control given shapes, identified by building models without weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import inf
from typing import TYPE_CHECKING, Any

from graphprune.errors import ExportError
from graphprune.huggingface.meta_models import ModelSummary, Shapes, as_text, flat, from_table, summarize, try_build

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Path = tuple[str | int, ...]
TensorDim = tuple[str, int]

#: Fields that describe what a model is for rather than how wide it is: never changed.
_NO_WIDTH = re.compile(
    r"vocab|token|position|_ctx$|label|layer|depth|block|stage|image|patch|channels$|stride|kernel|window|seed"
    r"|version|dtype"
)
_LARGEST_SET = 3


@dataclass(frozen=True)
class _Trial:
    """A config under trial, as plain values, and the summary of its model."""

    table: Mapping[str, Any]
    summary: ModelSummary


def fit(config: PreTrainedConfig, shapes: Shapes, trials: float = inf) -> PreTrainedConfig:
    """A copy of `config` whose stock class has exactly these parameter shapes.

    `shapes` may omit names (of tied weights) and include buffers; names that the class does not have, such as those of
    constants in a graph, are ignored. At most `trials` configs are tried.

    Raises:
        ExportError: if no field yields one of these shapes; names the first.
    """
    result = _search(config, shapes, trials)
    if isinstance(result, str):
        raise ExportError(result)
    return from_table(type(config), result.table)


def expressible(config: PreTrainedConfig, before: Shapes, after: Shapes) -> str | None:
    """The reason why no config changes the shapes from `before` to `after`; None if one does."""
    changed = {name: shape for name, shape in after.items() if before.get(name) != shape}
    result = _search(config, {**before, **changed})
    return result if isinstance(result, str) else None


def _search(config: PreTrainedConfig, shapes: Shapes, trials: float = inf) -> _Trial | str:
    """Change fields, one kind of width at a time, until every shape matches; the reason as text if none does."""
    start = _start(config)
    shapes = {name: shape for name, shape in shapes.items() if name in start.summary.shapes}
    if fault := _mismatch(config, start.summary, shapes):
        return fault
    search = _Search(type(config), start, shapes, trials)
    current, explicit = start, False
    while mismatches := search.mismatches(current.summary):
        improved = search.improved(current, mismatches)
        if improved is None and not explicit:
            improved, explicit = search.with_explicit_defaults(current), True
        if improved is None:
            return search.failure(mismatches)
        current = improved
    return current


def _start(config: PreTrainedConfig) -> _Trial:
    base = flat(config)
    return _Trial(json.loads(as_text(base)), summarize(base))


def _mismatch(config: PreTrainedConfig, summary: ModelSummary, shapes: Shapes) -> str | None:
    """The reason why no widths give this class such shapes; None if some may."""
    model = (config.architectures or ["the model"])[0]
    if not shapes:
        return f"none of the names is that of a parameter of {model}; they must be those of the stock class"
    for name, shape in shapes.items():
        if len(shape) != len(summary.shapes[name]):
            own = summary.shapes[name]
            return f"{name} has shape {shape}, {model} gives it {own}: a different number of dimensions"
    return None


@dataclass
class _Search:
    """Greedy search over configs: a step must correct some dimensions and break none."""

    kind: type[PreTrainedConfig]
    start: _Trial
    shapes: Shapes
    trials: float
    rejection: str = ""

    def mismatches(self, summary: ModelSummary) -> dict[TensorDim, tuple[int, int]]:
        """Dimensions that do not match yet, with (current size, target size)."""
        return {
            (name, dim): (size, target)
            for name, shape in self.shapes.items()
            for dim, (size, target) in enumerate(zip(summary.shapes[name], shape, strict=True))
            if size != target
        }

    def improved(self, current: _Trial, mismatches: Mapping[TensorDim, tuple[int, int]]) -> _Trial | None:
        """A config that corrects some dimensions and breaks none, with as few changed fields as possible.

        Among equally few, the one that corrects most dimensions is the likeliest: number of heads rather than head dim.
        """
        kinds = {pair: self._fields(current, *pair) for pair in dict.fromkeys(mismatches.values())}
        for count in range(1, _LARGEST_SET + 1):
            moves = [(some, *pair) for pair, fields in kinds.items() for some in combinations(fields, count)]
            trials = [trial for move in moves if (trial := self._trial(_scaled(current.table, *move)))]
            gains = [trial for trial in trials if self._improves(trial, mismatches, current)]
            if gains:
                return min(gains, key=lambda trial: len(self.mismatches(trial.summary)))
        return None

    def with_explicit_defaults(self, current: _Trial) -> _Trial | None:
        """A trial of an equal model with explicit values for widths left to the defaults of the config's class."""
        table = current.table
        for name in [name for name, value in table.items() if value is None and not _NO_WIDTH.search(name)]:
            size = self._default(current, name)
            if size is not None:
                table = {**table, name: size}
        trial = self._trial(table) if table != current.table else None
        return trial if trial is not None and trial.summary.shapes == current.summary.shapes else None

    def failure(self, mismatches: Mapping[TensorDim, tuple[int, int]]) -> str:
        """The message for the first dimension that no field corrects."""
        (name, dim), (size, target) = next(iter(mismatches.items()))
        message = f"no field of {self.kind.__name__} makes dimension {dim} of {name} {target} instead of {size}"
        if self._uneven(name):
            return f"{message}, since its layers differ in width; use destination per-layer or free"
        return f"{message}{self.rejection and f' ({self.rejection})'}; use destination free"

    def _uneven(self, name: str) -> bool:
        """Whether the counterparts of this parameter in other layers had one shape and now differ."""
        counterparts = [other for other in self.shapes if re.sub(r"\d+", "*", other) == re.sub(r"\d+", "*", name)]
        original = {self.start.summary.shapes[other] for other in counterparts}
        return len(original) == 1 and len({self.shapes[other] for other in counterparts}) > 1

    def _fields(self, current: _Trial, size: int, target: int) -> list[Path]:
        """Fields that change the model, or make it invalid, when they alone are scaled by target / size."""
        integers = ((path, value * target) for path, value in _integers(current.table))
        paths = [path for path, product in integers if product >= size and product % size == 0]
        summaries = {path: self._summary(_scaled(current.table, (path,), size, target)) for path in paths}
        return [path for path in paths if isinstance(summaries[path], str) or summaries[path] != current.summary]

    def _default(self, current: _Trial, name: str) -> int | None:
        """The width that the class uses while the field is None; None if the field is not a width."""
        probe = 88  # divisible by the common group and head counts, and unlikely to be a width in use
        summary = self._summary({**current.table, name: probe})
        if isinstance(summary, str) or summary.shapes.keys() != current.summary.shapes.keys():
            return None
        sizes = [zip(current.summary.shapes[key], summary.shapes[key], strict=False) for key in summary.shapes]
        pairs = {pair for shape in sizes for pair in shape if pair[0] != pair[1]}
        return pairs.pop()[0] if len(pairs) == 1 and next(iter(pairs))[1] == probe else None

    def _improves(self, trial: _Trial, mismatches: Mapping[TensorDim, tuple[int, int]], current: _Trial) -> bool:
        summary = trial.summary
        if summary.shapes.keys() != current.summary.shapes.keys():
            return False
        if any(len(summary.shapes[name]) != len(shape) for name, shape in self.shapes.items()):
            return False
        remaining = self.mismatches(summary).keys()
        return remaining < mismatches.keys() and self._same_constants(trial)

    def _same_constants(self, trial: _Trial) -> bool:
        """Whether the reloaded model has the same numbers (such as scales) and the same buffers that are not saved."""
        start, summary = self.start.summary, trial.summary
        tables = [name for name in start.transient - self.shapes.keys() if start.shapes[name] != summary.shapes[name]]
        numbers = [name for name, number in start.numbers.items() if summary.numbers.get(name) != number]
        if name := next(iter([*tables, *numbers]), None):
            old = start.shapes[name] if tables else start.numbers[name]
            new = summary.shapes[name] if tables else summary.numbers.get(name)
            self.rejection = f"a config that does would also change {name} from {old} to {new}"
        return not tables and not numbers

    def _trial(self, table: Mapping[str, Any]) -> _Trial | None:
        summary = self._summary(table)
        if isinstance(summary, str):
            self.rejection = f"{self.kind.__name__}: {summary}"
            return None
        return _Trial(table, summary)

    def _summary(self, table: Mapping[str, Any]) -> ModelSummary | str:
        self.trials -= 1
        if self.trials < 0:
            return "too many combinations of fields to try them all"
        return try_build(self.kind, json.dumps(table, sort_keys=True))


def _integers(value: Any, path: Path = ()) -> Iterator[tuple[Path, int]]:
    if any(isinstance(key, str) and _NO_WIDTH.search(key) for key in path[-1:]):
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


def _scaled(table: Mapping[str, Any], paths: Iterable[Path], size: int, target: int) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(table))
    for path in paths:
        inner: Any = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = inner[path[-1]] * target // size
    return changed
