"""Measurements of two models on the same units (windows of a text, batches, runs), and their ratio with an interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, sqrt
from typing import Any

Z = 1.6449  # 95 % of a normal distribution lie below so many standard deviations


@dataclass(frozen=True)
class Estimate:
    """Value with an interval: 5 % of the probability lie below `low`, and 5 % above `high`."""

    value: float
    low: float
    high: float

    def worst(self, lower: bool) -> float:
        """End of the interval that is worse, where `lower` values are better."""
        return self.high if lower else self.low


@dataclass(frozen=True)
class PairedSamples:
    """Values of independent units with their weights; with `logarithms`, the quantity is the exponential of their mean.

    A single unit is exact: its interval has no width.
    """

    values: Sequence[float]
    weights: Sequence[float] = ()
    logarithms: bool = False

    @classmethod
    def exact(cls, value: float) -> "PairedSamples":
        """Quantity that is counted, not sampled."""
        return cls((float(value),))

    def estimate(self) -> Estimate:
        """The quantity itself."""
        mean = self._mean(self.values)
        error = self._error([value - mean for value in self.values])
        return self._interval(mean, error)

    def relative_to(self, dense: "PairedSamples") -> Estimate:
        """The quantity as a multiple of that of the dense model on the same units."""
        if self.logarithms:
            differences = [b - a for a, b in zip(dense.values, self.values, strict=True)]
            mean = self._mean(differences)
            return self._interval(mean, self._error([value - mean for value in differences]))
        before, after = self._mean(dense.values), self._mean(self.values)
        ratio = after / before if before else float("inf")
        rests = [(b - ratio * a) / before if before else 0.0 for a, b in zip(dense.values, self.values, strict=True)]
        return self._interval(ratio, self._error(rests))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"values": list(self.values), "weights": list(self.weights), "logarithms": self.logarithms}

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> "PairedSamples":
        """Samples from what `to_dict` returned."""
        return cls(tuple(table["values"]), tuple(table["weights"]), bool(table["logarithms"]))

    def _shares(self) -> list[float]:
        weights = self.weights or [1.0] * len(self.values)
        return [weight / sum(weights) for weight in weights]

    def _mean(self, values: Sequence[float]) -> float:
        return sum(share * value for share, value in zip(self._shares(), values, strict=True))

    def _error(self, rests: Sequence[float]) -> float:
        """Half the width of the interval of a weighted mean, by the deviations of the units from it."""
        count = len(rests)
        if count < 2:
            return 0.0
        squares = sum((share * rest) ** 2 for share, rest in zip(self._shares(), rests, strict=True))
        return _quantile(count - 1) * sqrt(squares * count / (count - 1))

    def _interval(self, mean: float, error: float) -> Estimate:
        ends = (mean, mean - error, mean + error)
        return Estimate(*(map(exponential, ends) if self.logarithms else ends))


def exponential(value: float) -> float:
    """Exponential of a value; infinity where it is no finite number."""
    return exp(value) if value < 700 else float("inf")


def _quantile(freedom: int) -> float:
    """Quantile of Student's distribution at 95 %, by its expansion about the normal one."""
    return Z + (Z**3 + Z) / (4 * freedom) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * freedom**2)
