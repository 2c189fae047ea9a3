"""Indices in the order in which they go: within a group, and among all groups of a pool."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.planning.budget import Budget, Knob
from graphprune.planning.plan import Rows

Worth = Callable[[Knob], Tensor]
Point = tuple[float, float]


def top(scores: Tensor, width: int) -> Rows:
    """The indices of the `width` highest scores of every row, in order; of equal scores the first."""
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :width]
    return tuple(tuple(row) for row in order.sort(dim=1).values.tolist())


def ranked(scores: Tensor) -> Tensor:
    """The scores of a group, shape (rows, size), in the order in which its indices go, the lowest first: shape (size,).

    Rows lose equally many indices, so that those of one rank go together: theirs is the mean.
    """
    return scores.double().sort(dim=1).values.mean(0)


def chosen(knobs: Sequence[Knob], scores: Mapping[str, Tensor], shares: Mapping[str, float]) -> dict[str, Rows]:
    """What groups keep at these shares, rounded to legal widths: rows of indices, for those that lose any."""
    rows = dict[str, Rows]()
    for knob in knobs:
        width = knob.floor(shares[knob.groups[0].name] * knob.size + 0.5)
        if width < knob.size:
            rows |= {group.name: top(scores[group.name], width) for group in knob.groups}
    return rows


@dataclass(frozen=True)
class Pool:
    """Pieces of knobs, of which those that are worth least go first.

    All tensors have the shape (pieces,): the place of the knob in the budget to which a piece belongs, the `share` of
    the knob's indices that it holds, its `cost` in the unit of the budget, and its `worth`, comparable among all.
    """

    knob: Tensor
    share: Tensor
    cost: Tensor
    worth: Tensor

    @classmethod
    def of(cls, budget: Budget, places: Sequence[int], worth: Worth) -> "Pool":
        """All indices of the knobs at these places; `worth` gives that of a knob's indices, in the order they go in."""
        knobs = [(at, budget.knobs[at]) for at in places]
        where = torch.tensor([at for at, knob in knobs for _ in range(knob.size)])
        share = torch.tensor([1 / knob.size for _, knob in knobs for _ in range(knob.size)], dtype=torch.float64)
        prices = [price for _, knob in knobs for price in [budget.price(knob)] * knob.size]
        value = torch.cat([worth(knob) for _, knob in knobs])
        return cls(where, share, torch.tensor(prices, dtype=torch.float64), value).sorted()

    def sorted(self) -> "Pool":
        """The same pieces in the order in which they go."""
        order = self.worth.argsort(stable=True)
        return Pool(self.knob[order], self.share[order], self.cost[order], self.worth[order])

    def gone(self, knobs: int, part: float) -> Tensor:
        """Which share each knob has lost, shape (knobs,), once pieces worth `part` of the whole cost are gone.

        The piece at the border goes in part, so that the result follows `part` without jumps. Pieces are sorted.
        """
        after = self.cost.cumsum(0)
        fractions = ((part * after[-1] - after + self.cost) / self.cost.clamp(min=1e-12)).clamp(0, 1)
        return torch.zeros(knobs, dtype=torch.float64).index_add(0, self.knob, fractions * self.share)


def shares_of(budget: Budget, gone: Tensor) -> dict[str, float]:
    """The share that each group keeps, by name, where knobs have lost the shares `gone`, shape (knobs,)."""
    left = (1 - gone).clamp(0, 1).tolist()
    return {group.name: left[at] for at, knob in enumerate(budget.knobs) for group in knob.groups}


def projected(budget: Budget, gone: Tensor) -> Tensor:
    """The shares gone from each knob, shape (knobs,), all moved alike until the budget is met, between 0 and 1.

    Raises:
        PlanError: if the target lies beyond what the groups can give.
    """
    names = [knob.groups[0].name for knob in budget.knobs]
    low, high = float(gone.min()), float(gone.max())
    found = budget.solve(lambda p: shares_of(budget, (gone - high + p * (1 + high - low)).clamp(0, 1)))
    return 1 - torch.tensor([found[name] for name in names], dtype=torch.float64)


def hull(points: Sequence[Point]) -> list[Point]:
    """The lower convex hull of points sorted by their first number."""
    found: list[Point] = []
    for x, y in points:
        while len(found) > 1 and _slope(found[-2], found[-1]) >= _slope(found[-1], (x, y)):
            found.pop()
        found.append((x, y))
    return found


def _slope(a: Point, b: Point) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
