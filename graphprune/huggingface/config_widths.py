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
from graphprune.huggingface.default_fields import NO_WIDTH, Path, at, explicit, placed
from graphprune.huggingface.meta_models import ModelSummary, Shapes, as_text, flat, from_table, summarize, try_build

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TensorDim = tuple[str, int]

_LARGEST_SET = 3
_MOST_STATES = 64  # of a search


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


def alternatives(config: PreTrainedConfig, before: Shapes, after: Shapes) -> Iterator[Shapes]:
    """Shapes of models that differ from the config by few fields, in each of which some change to `after` is made.

    The other changes of such a model show what the same fields set: it must be cut together.
    """
    start = _start(config)
    shapes = {name: shape for name, shape in {**before, **after}.items() if name in start.summary.shapes}
    if _mismatch(config, start.summary, shapes):
        return
    search = _Search(type(config), start, shapes, inf)
    for current in (start, *search.with_explicit_defaults(start)):
        yield from search.alternatives(current)


def _search(config: PreTrainedConfig, shapes: Shapes, trials: float = inf) -> _Trial | str:
    """Change fields, one kind of width at a time, until every shape matches; the reason as text if none does."""
    start = _start(config)
    shapes = {name: shape for name, shape in shapes.items() if name in start.summary.shapes}
    if fault := _mismatch(config, start.summary, shapes):
        return fault
    return _Search(type(config), start, shapes, trials).solve()


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
    """Depth-first search over configs: a step must correct some dimensions and break none."""

    kind: type[PreTrainedConfig]
    start: _Trial
    shapes: Shapes
    trials: float
    rejection: str = ""

    def solve(self) -> _Trial | str:
        """A config with the shapes; the reason as text if none has them."""
        stack, seen, failure = [self.start], set[str](), ""
        while stack and len(seen) < _MOST_STATES:
            current = stack.pop()
            if not (mismatches := self.mismatches(current.summary)):
                return current
            if (text := json.dumps(current.table, sort_keys=True)) in seen:
                continue
            seen.add(text)
            following = self.improved(current, mismatches) or self.with_explicit_defaults(current)
            failure = failure or ("" if following else self.failure(mismatches))
            stack.extend(reversed(following))
        return failure

    def mismatches(self, summary: ModelSummary) -> dict[TensorDim, tuple[int, int]]:
        """Dimensions that do not match yet, with (current size, target size)."""
        return {
            (name, dim): (size, target)
            for name, shape in self.shapes.items()
            for dim, (size, target) in enumerate(zip(summary.shapes[name], shape, strict=True))
            if size != target
        }

    def improved(self, current: _Trial, mismatches: Mapping[TensorDim, tuple[int, int]]) -> list[_Trial]:
        """Configs that correct some dimensions and break none, with as few changed fields as possible.

        The one that corrects most dimensions comes first, as the likeliest: number of heads rather than head dim.
        """
        for trials in self._moves(current, mismatches):
            gains = [trial for trial in trials if self.mismatches(trial.summary).keys() < mismatches.keys()]
            if gains := [trial for trial in gains if self._same_constants(trial)]:
                return sorted(gains, key=lambda trial: len(self.mismatches(trial.summary)))
        return []

    def _moves(self, current: _Trial, mismatches: Mapping[TensorDim, tuple[int, int]]) -> Iterator[list[_Trial]]:
        """Trials with one field, two fields and so on scaled as one of the mismatching dimensions."""
        kinds = {pair: self._fields(current, *pair) for pair in dict.fromkeys(mismatches.values())}
        for count in range(1, _LARGEST_SET + 1):
            moves = [(some, *pair) for pair, fields in kinds.items() for some in combinations(fields, count)]
            trials = [trial for move in moves if (trial := self._trial(_scaled(current.table, *move)))]
            yield [trial for trial in trials if self._comparable(trial.summary.shapes)]

    def with_explicit_defaults(self, current: _Trial) -> list[_Trial]:
        """The trial of the same model with explicit values of widths left to defaults; none if there are no such."""
        table = explicit(self.kind, dict(current.table), current.summary, self._summary)
        trial = self._trial(table) if table != current.table else None
        return [trial] if trial is not None else []

    def alternatives(self, current: _Trial) -> Iterator[Shapes]:
        """Shapes of models that differ by few fields, in each of which some dimension is corrected.

        Those with the fewest fields come first, and of them those that change the fewest other dimensions.
        """
        mismatches = self.mismatches(current.summary)
        for trials in self._moves(current, mismatches):
            remaining = [(self.mismatches(trial.summary).keys(), trial) for trial in trials]
            hits = [(len(left), trial) for left, trial in remaining if mismatches.keys() - left]
            hits = [(wrong, trial) for wrong, trial in hits if self._same_constants(trial)]
            yield from (trial.summary.shapes for _, trial in sorted(hits, key=lambda hit: hit[0]))

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

    def _comparable(self, shapes: Shapes) -> bool:
        """Whether a model has the parameters of the original, each with as many dimensions."""
        same_names = shapes.keys() == self.start.summary.shapes.keys()
        return same_names and all(len(shapes[name]) == len(shape) for name, shape in self.shapes.items())

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
    if any(isinstance(key, str) and NO_WIDTH.search(key) for key in path[-1:]):
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
    changed = dict(table)
    for path in paths:
        changed = placed(changed, path, at(changed, path) * target // size)
    return changed
