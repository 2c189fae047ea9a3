"""Summaries of parameters and groups by layer and by kind, short enough for a page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from graphprune.axes.groups import kind_of, layer_of
from graphprune.axes.name_globs import kind

Counts = Mapping[str, tuple[int, int]]  # by name, before and after


@dataclass(frozen=True)
class Bar:
    """Amounts before and after; `of` is the greatest amount in the same picture."""

    name: str
    before: int
    after: int
    of: int = 1

    @property
    def whole(self) -> float:
        """Length of the bar before, as a share of the picture."""
        return self.before / self.of

    @property
    def left(self) -> float:
        """Length of the bar after, as a share of the picture, at most 1."""
        return min(self.after / self.of, 1.0)


@dataclass(frozen=True)
class Strip:
    """Groups of one kind, layer after layer; bars are their widths before and after."""

    name: str
    bars: Sequence[Bar]

    @property
    def widths(self) -> str:
        """Range of widths before and after: ``64 -> 48`` or ``64 -> 40 to 56``."""
        sizes = sorted({bar.before for bar in self.bars})
        widths = sorted({bar.after for bar in self.bars})
        return " \u2192 ".join(_range(numbers) for numbers in (sizes, widths))


def _range(ordered: Sequence[int]) -> str:
    low, high = ordered[0], ordered[-1]
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def by_layer(counts: Counts) -> list[Bar]:
    """Parameters by layer: the path up to the layer's number, or the module of parameters without one."""
    return _summed(counts, _layer)


def together(bars: Sequence[Bar]) -> list[Bar]:
    """Merge neighbors with the same numbers: ``layers.0 to layers.29, each``."""
    runs = [list(run) for _, run in groupby(bars, lambda bar: (bar.before, bar.after))]
    names = [run[0].name if len(run) == 1 else f"{run[0].name} to {run[-1].name}, each" for run in runs]
    return [replace(run[0], name=name) for run, name in zip(runs, names, strict=True)]


def by_kind(counts: Counts) -> list[Bar]:
    """Parameters by name without layer numbers, largest first."""
    return sorted(_summed(counts, kind), key=lambda bar: -bar.before)


def strips(widths: Counts) -> list[Strip]:
    """Widths of the cut groups, by kind."""
    bars: dict[str, list[Bar]] = {}
    for name, (before, after) in widths.items():
        bars.setdefault(kind_of(name), []).append(Bar(layer_of(name) or name, before, after, max(before, 1)))
    return [Strip(name, row) for name, row in bars.items()]


def _layer(name: str) -> str:
    words = name.split(".")
    at = next((i for i, word in enumerate(words) if word.isdigit()), None)
    return ".".join(words[: at + 1] if at is not None else words[:-1] or words)


def _summed(counts: Counts, key: Callable[[str], str]) -> list[Bar]:
    sums: dict[str, tuple[int, int]] = {}
    for name, (before, after) in counts.items():
        known = sums.get(key(name), (0, 0))
        sums[key(name)] = known[0] + before, known[1] + after
    largest = max((max(pair) for pair in sums.values()), default=1)
    return [Bar(name, before, after, max(largest, 1)) for name, (before, after) in sums.items()]
