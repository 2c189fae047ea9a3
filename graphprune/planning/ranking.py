"""Order of removal: of the indices of a group, and of all groups in a pool."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.planning.budget import NONE, Budget, Knob
from graphprune.planning.plan import Rows

LEAST, MOST = 0.5, 1 / 6  # of the uniform share, and of its indices, that every group retains
LATE = 1e30  # more than any growth of a loss per cost
KnobScores = Callable[[Knob], Tensor]
Point = tuple[float, float]


def top(scores: Tensor, width: int) -> Rows:
    """The indices of the `width` highest scores of every row, ascending; of equal scores the first ones."""
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :width]
    return tuple(tuple(row) for row in order.sort(dim=1).values.tolist())


def ranked(scores: Tensor) -> Tensor:
    """The scores of a group, shape (rows, size), in order of removal, lowest first, as a tensor of shape (size,).

    Every row loses equally many indices, so that those of one rank are removed together: the result is their mean.
    """
    return scores.double().sort(dim=1).values.mean(0)


def chosen(
    knobs: Sequence[Knob],
    scores: Mapping[str, Tensor],
    shares: Mapping[str, float],
    requested: Mapping[str, int] = NONE,
) -> dict[str, Rows]:
    """The retained rows of the groups that lose indices at these shares, which are rounded to legal widths, or at
    `requested` widths."""
    rows = {name: top(scores[name], width) for name, width in requested.items() if width < scores[name].shape[1]}
    for knob in knobs:
        width = knob.floor(shares[knob.groups[0].name] * knob.size + 0.5)
        if width < knob.size:
            rows |= {group.name: top(scores[group.name], width) for group in knob.groups}
    return rows


@dataclass(frozen=True)
class Pool:
    """Pieces of knobs, which are removed in the order of their scores, lowest first.

    All tensors have the shape (pieces,): the position of the piece's knob in the budget, the `share` of the knob's
    indices in the piece, its `cost` in the unit of the budget, and its `score`, comparable among all pieces.
    """

    knob: Tensor
    share: Tensor
    cost: Tensor
    score: Tensor

    @classmethod
    def of(cls, budget: Budget, places: Sequence[int], scores: KnobScores) -> "Pool":
        """All indices of the knobs at these positions; `scores` returns those of a knob in order of removal."""
        knobs = [(at, budget.knobs[at]) for at in places]
        where = torch.tensor([at for at, knob in knobs for _ in range(knob.size)])
        share = torch.tensor([1 / knob.size for _, knob in knobs for _ in range(knob.size)], dtype=torch.float64)
        costs = [cost for _, knob in knobs for cost in [budget.cost_per_index(knob)] * knob.size]
        score = torch.cat([scores(knob) for _, knob in knobs])
        return cls(where, share, torch.tensor(costs, dtype=torch.float64), score).sorted()

    def sorted(self) -> "Pool":
        """The pool with its pieces in order of removal."""
        order = self.score.argsort(stable=True)
        return Pool(self.knob[order], self.share[order], self.cost[order], self.score[order])

    def removed_shares(self, knobs: int, part: float) -> Tensor:
        """The removed share of each knob, shape (knobs,), when sorted pieces of `part` of the whole cost are removed.

        The last piece is removed in part, so that the result is continuous in `part`.
        """
        after = self.cost.cumsum(0)
        fractions = ((part * after[-1] - after + self.cost) / self.cost.clamp(min=1e-12)).clamp(0, 1)
        return torch.zeros(knobs, dtype=torch.float64).index_add(0, self.knob, fractions * self.share)


def growth_pool(budget: Budget, scores: Mapping[str, Tensor], least: float = 0.0) -> Pool:
    """The indices of all knobs by the growth of the loss per cost, for scores that estimate this growth.

    The last indices of a knob, up to its `least` share, are removed after all others.
    """

    def loss_per_cost(knob: Knob) -> Tensor:
        growth = torch.stack([ranked(scores[group.name]) * len(scores[group.name]) for group in knob.groups]).sum(0)
        slopes = growth / max(budget.cost_per_index(knob), 1e-12)
        slopes[knob.size - int(least * knob.size) :] += LATE
        return slopes

    return Pool.of(budget, range(len(budget.knobs)), loss_per_cost)


def shares_of(budget: Budget, removed: Tensor) -> dict[str, float]:
    """The retained share of each group, by name, given the `removed` shares of knobs, shape (knobs,)."""
    retained = (1 - removed).clamp(0, 1).tolist()
    return {group.name: retained[at] for at, knob in enumerate(budget.knobs) for group in knob.groups}


def pooled_shares(budget: Budget, pool: Pool) -> Mapping[str, float]:
    """The retained share of each group, by name, when pieces of all knobs are removed until the target is met.

    Raises:
        PlanError: if the target is more than the groups can give.
    """
    return budget.solve(lambda part: shares_of(budget, pool.removed_shares(len(budget.knobs), part)))


def growth_shares(budget: Budget, scores: Mapping[str, Tensor]) -> Mapping[str, float]:
    """The retained share of each group, by name, where the growth of the loss per cost is the same for the last indices
    that are removed.

    No group falls below half of the share that all would retain alike, or a sixth of its indices if that is less:
    derivatives at the dense model say too little of the loss where almost nothing of a layer is left, and such a layer
    would block all others (layer collapse, arXiv:2006.05467).

    Raises:
        PlanError: if the target is more than the groups can give.
    """
    least = min(LEAST * min(budget.uniform.values(), default=1.0), MOST)
    return pooled_shares(budget, growth_pool(budget, scores, least))


def projected(budget: Budget, removed: Tensor) -> Tensor:
    """The removed shares of knobs, shape (knobs,), shifted alike to meet the budget, and clamped to [0, 1].

    Raises:
        PlanError: if the target is more than the groups can give.
    """
    names = [knob.groups[0].name for knob in budget.knobs]
    low, high = float(removed.min()), float(removed.max())
    shares = budget.solve(lambda p: shares_of(budget, (removed - high + p * (1 + high - low)).clamp(0, 1)))
    return 1 - torch.tensor([shares[name] for name in names], dtype=torch.float64)


def hull(points: Sequence[Point]) -> list[Point]:
    """The lower convex hull of points in the order of their first coordinate (Andrew's monotone chain)."""
    lower: list[Point] = []
    for x, y in points:
        while len(lower) > 1 and _slope(lower[-2], lower[-1]) >= _slope(lower[-1], (x, y)):
            lower.pop()
        lower.append((x, y))
    return lower


def _slope(a: Point, b: Point) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
