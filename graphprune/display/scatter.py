"""Layout of a scatter plot: sizes on the horizontal axis, a loss on the logarithmic vertical axis."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log, log10

WIDTH, HEIGHT = 900.0, 400.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 24.0, 18.0, 46.0  # margins
ALIKE = 0.005  # relative difference up to which sizes count as equal
LETTER, LINE = 6.6, 15.0  # approximate width and height of a letter


@dataclass(frozen=True)
class Point:
    """Size and loss of a run.

    `ahead`: no other run is as small and as good; `dense`: the model is not pruned.
    """

    name: str
    size: float
    loss: float
    ahead: bool = True
    dense: bool = False


@dataclass(frozen=True)
class Mark:
    """Point in the drawing, with the position and anchor of its label."""

    point: Point
    x: float
    y: float
    label_x: float
    label_y: float
    anchor: str


@dataclass(frozen=True)
class Tick:
    """Tick of an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Plot:
    """Drawing of `WIDTH` x `HEIGHT`; `frontier` holds the points of a line."""

    marks: Sequence[Mark]
    frontier: str
    across: Sequence[Tick]
    up: Sequence[Tick]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


def ahead(points: Sequence[Point]) -> list[bool]:
    """Whether each point is on the frontier: no other is as small and as good, and smaller or better."""

    def beats(other: Point, one: Point) -> bool:
        smaller = other.size * (1 + ALIKE) < one.size
        return (smaller or other.size <= one.size * (1 + ALIKE)) and (
            other.loss < one.loss or (smaller and other.loss == one.loss)
        )

    return [not any(beats(other, one) for other in points) for one in points]


def plot(points: Sequence[Point]) -> Plot:
    """Lay out at least one point; all losses are above zero."""
    sizes, losses = [p.size for p in points], [log(p.loss) for p in points]
    low, high = _padded(min(sizes), max(sizes))
    bottom, top = _padded(min(losses), max(losses))

    def across(size: float) -> float:
        return LEFT + (size - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def up(loss: float) -> float:
        return HEIGHT - BOTTOM - (log(loss) - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    placed = [(p, across(p.size), up(p.loss)) for p in points]
    line = sorted((x, y) for p, x, y in placed if p.ahead)
    return Plot(
        _labeled(placed),
        " ".join(f"{x:.1f},{y:.1f}" for x, y in line),
        [Tick(across(value), short(value)) for value in _even(low, high)],
        [Tick(up(value), short(value)) for value in _rising(bottom, top)],
    )


def short(value: float) -> str:
    """Short number for an axis: 1.2 M."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " K")):
        if value >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"


def _padded(low: float, high: float) -> tuple[float, float]:
    """Range with a margin at both ends, also for a single value."""
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
    return low - margin, high + margin


def _even(low: float, high: float) -> list[float]:
    """About six round numbers between two."""
    step = 10 ** floor(log10((high - low) / 3))
    step = next(s for s in (step, 2 * step, 5 * step) if (high - low) / s <= 7 or s == 5 * step)
    return [i * step for i in range(ceil(low / step), floor(high / step) + 1)]


def _rising(bottom: float, top: float) -> list[float]:
    """Round numbers with logarithms in a range: 1, 2, 5 times powers of ten, or evenly spaced ones if too few."""
    decades = range(floor(bottom / log(10)), ceil(top / log(10)) + 1)
    values = [digit * 10.0**power for power in decades for digit in (1, 2, 5)]
    values = [value for value in values if bottom <= log(value) <= top]
    return values if len(values) > 2 else _even(2.718281828459045**bottom, 2.718281828459045**top)


def _labeled(placed: Sequence[tuple[Point, float, float]]) -> list[Mark]:
    """Place labels above and to the right of their points, and move them up until none overlaps another."""
    taken: list[tuple[float, float, float]] = []
    marks = []
    for point, x, y in sorted(placed, key=lambda item: -item[2]):
        wide = len(point.name) * LETTER
        fits = x + 8 + wide < WIDTH - RIGHT
        start, at = (x + 8 if fits else x - 8 - wide), y - 7
        while any(start < end and begin < start + wide and abs(at - line) < LINE for begin, end, line in taken):
            at -= LINE / 3
        taken.append((start, start + wide, at))
        marks.append(Mark(point, x, y, x + 8 if fits else x - 8, at, "start" if fits else "end"))
    return marks
