"""Color scale of numbers, shared by the graph, the heat maps and Graphviz."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import log

#: Shades from the least to the greatest number, which also differ in lightness for prints in gray.
SHADES = ("#fcfdbf", "#fecf92", "#fe9f6d", "#f7705c", "#de4968", "#b63679", "#8c2981", "#641a80")
WHITE_FROM = 5  # text on this shade and those after it is white
DECADES = 1e-3  # rises below this share of the highest have the first shade


@dataclass(frozen=True)
class ColorScale:
    """Shades of numbers from `low` to `high`; a number outside has the nearest shade."""

    low: float
    high: float
    logarithmic: bool = False

    @classmethod
    def linear(cls, numbers: Iterable[float]) -> "ColorScale":
        """Scale from the least number to the greatest."""
        known = list(numbers) or [0.0]
        return cls(min(known), max(known))

    @classmethod
    def of_rises(cls, rises: Iterable[float]) -> "ColorScale":
        """Logarithmic scale of the rises above zero, over at most three decades."""
        known = [rise for rise in rises if rise > 0] or [1.0]
        return cls(max(min(known), max(known) * DECADES), max(known), logarithmic=True)

    def place(self, number: float) -> int:
        """Index of a number's shade in `SHADES`."""
        if number <= self.low or self.high <= self.low:
            return len(SHADES) - 1 if number > self.low else 0
        low, high, at = (log(n) if self.logarithmic else n for n in (self.low, self.high, number))
        if high <= low:  # neighbors, whose logarithms are equal
            return len(SHADES) - 1
        return min(int((at - low) / (high - low) * len(SHADES)), len(SHADES) - 1)

    def shade(self, number: float) -> str:
        """Color of a number."""
        return SHADES[self.place(number)]

    def text(self, number: float) -> str:
        """Color of legible text on the shade of a number."""
        return "white" if self.place(number) >= WHITE_FROM else "black"
