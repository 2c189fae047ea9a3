"""Search for the share of a reduction at which measurements reach their goals, in few trials.

Progress is 0 for the dense model and 1 at the goal; it rises with the share. The plan's curve, the scores that a share
removes, predicts its shape: progress is about linear in it, and every trial corrects the scale.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

START = 0.1  # share of the first trial
NARROW = 0.01  # difference of two shares between which no further one is tried
CLOSE = 0.07  # distance of the progress from 1 at which a share counts as exact
AIM = 0.03  # distance from 1 at which trials aim, on the side that meets the goal
TRIALS = 10  # at most
MARGIN = 0.15  # share of the bracket that a trial removes at least


@dataclass(frozen=True)
class PlanCurve:
    """Predicted loss of shares, rising: the first point is that of the dense model, the last the greatest share."""

    shares: Sequence[float]
    losses: Sequence[float]

    @property
    def most(self) -> float:
        """Greatest share that can be removed."""
        return self.shares[-1]

    def loss(self, share: float) -> float:
        """Predicted loss of a share, between the points."""
        return _between(self.shares, self.losses, share)

    def share(self, loss: float) -> float:
        """Share with a predicted loss; the greatest one beyond the curve."""
        return _between(self.losses, self.shares, loss)


@dataclass
class ShareSearch:
    """Search for the share where `progress` reaches 1: the greatest below (`below`), or the least above.

    `tried` holds the progress of the tried shares.
    """

    curve: PlanCurve
    progress: Callable[[float], float]
    below: bool
    tried: dict[float, float] = field(default_factory=dict)

    def run(self) -> float | None:
        """Share nearest to the goal on the side that meets it; None if no tried share does."""
        while len(self.tried) < TRIALS and (share := self._next()) is not None:
            self.tried[share] = self.progress(share)
        return self.best

    @property
    def best(self) -> float | None:
        """Share of the trials that is nearest to the goal, of those that meet it."""
        if self.below:
            return max((share for share in self._met() if share < self._high()), default=None)
        return min(self._met(), default=None)

    def _met(self) -> list[float]:
        return [s for s, p in self.tried.items() if (p <= 1 if self.below else p >= 1)]

    def _low(self) -> float:
        """Greatest share from which on goals of costs are not met, or up to which those of quality are."""
        return max((s for s, p in self.tried.items() if p < 1 and s < self._high()), default=0.0)

    def _high(self) -> float:
        return min((s for s, p in self.tried.items() if (p > 1 if self.below else p >= 1)), default=2.0)

    def _next(self) -> float | None:
        """Next share to try; None if the best one is near enough."""
        low, high = self._low(), self._high()
        best = self.best
        if best is not None and abs(self.tried[best] - 1) <= CLOSE:
            return None
        if high > 1:
            return self._farther(low)
        if high - low <= NARROW:
            return None
        return self._inside(low, high)

    def _farther(self, low: float) -> float | None:
        """A greater share than all tried ones."""
        most = self.curve.most
        if low >= most:
            return None
        if not low:
            return min(START, most)
        reached = max(self.tried[low], 1e-3)
        proposed = self.curve.share(self.curve.loss(low) * self._target() / reached)
        share = min(max(proposed, low + NARROW), 2 * low, most)
        return most if most - share < NARROW else share

    def _inside(self, low: float, high: float) -> float:
        """A share between two, by linear progress along the curve."""
        (x0, p0), (x1, p1) = ((self.curve.loss(s), self.tried.get(s, 0.0)) for s in (low, high))
        at = x0 + (x1 - x0) * (self._target() - p0) / max(p1 - p0, 1e-9)
        margin = MARGIN * (high - low)
        return min(max(self.curve.share(at), low + margin), high - margin)

    def _target(self) -> float:
        return 1 - AIM if self.below else 1 + AIM


def _between(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Linear interpolation of rising points; the ends beyond them."""
    at = bisect_left(xs, x)
    if at == 0:
        return ys[0]
    if at == len(xs):
        return ys[-1]
    part = (x - xs[at - 1]) / max(xs[at] - xs[at - 1], 1e-12)
    return ys[at - 1] + part * (ys[at] - ys[at - 1])
