"""Where the points of a drawing stand: sizes from left to right, a loss from bottom to top on a logarithmic scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log, log10

WIDTH, HEIGHT = 900.0, 400.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 24.0, 18.0, 46.0  # margins
ALIKE = 0.005  # sizes that differ by no more are the same, so that a single parameter makes no run the smallest
LETTER, LINE = 6.6, 15.0  # the size of a letter, about


@dataclass(frozen=True)
class Point:
    """A run in numbers: what it has left, and how bad it is. `ahead`: no other is smaller and better; `dense`: it was
    not pruned."""

    name: str
    size: float
    loss: float
    ahead: bool = True
    dense: bool = False


@dataclass(frozen=True)
class Mark:
    """A point in the drawing, with its label and where that ends or begins."""

    point: Point
    x: float
    y: float
    label_x: float
    label_y: float
    anchor: str


@dataclass(frozen=True)
class Tick:
    """A place on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Plot:
    """A drawing of `WIDTH` x `HEIGHT`; `frontier` holds the points of a line."""

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
    """Of which points is no other as small and as good, and smaller or better? Sizes within `ALIKE` are the same."""

    def beats(other: Point, one: Point) -> bool:
        smaller = other.size * (1 + ALIKE) < one.size
        return (smaller or other.size <= one.size * (1 + ALIKE)) and (
            other.loss < one.loss or (smaller and other.loss == one.loss)
        )

    return [not any(beats(other, one) for other in points) for one in points]


def plot(points: Sequence[Point]) -> Plot:
    """The drawing of some points, of which there is one at least; all losses are above zero."""
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
        _labelled(placed),
        " ".join(f"{x:.1f},{y:.1f}" for x, y in line),
        [Tick(across(value), short(value)) for value in _even(low, high)],
        [Tick(up(value), short(value)) for value in _rising(bottom, top)],
    )


def short(value: float) -> str:
    """A number on an axis: 1.2 M."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " K")):
        if value >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"


def _padded(low: float, high: float) -> tuple[float, float]:
    """Some room at both ends; room at all where there is one value only."""
    room = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
    return low - room, high + room


def _even(low: float, high: float) -> list[float]:
    """About six round numbers between two."""
    step = 10 ** floor(log10((high - low) / 3))
    step = next(s for s in (step, 2 * step, 5 * step) if (high - low) / s <= 7 or s == 5 * step)
    return [i * step for i in range(ceil(low / step), floor(high / step) + 1)]


def _rising(bottom: float, top: float) -> list[float]:
    """Round numbers with logarithms between two: 1, 2, 5 and ten times those; even ones where these are too few."""
    decades = range(floor(bottom / log(10)), ceil(top / log(10)) + 1)
    found = [digit * 10.0**power for power in decades for digit in (1, 2, 5)]
    found = [value for value in found if bottom <= log(value) <= top]
    return found if len(found) > 2 else _even(2.718281828459045**bottom, 2.718281828459045**top)


def _labelled(placed: Sequence[tuple[Point, float, float]]) -> list[Mark]:
    """Labels above their points, to the right, moved up as long as they would lie on another."""
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
