"""Kwon et al. (arXiv:2204.09656, section 4.1): the split between heads and neurons that keeps most under a budget.

Indices of one kind compete across all layers by their scores; of all splits of the budget between the kinds the one
whose kept scores sum up highest is taken. The paper tries every number of heads, which settles the number of neurons.
Here there may be more than two kinds, so kinds are joined one after the other, every split of a fine grid of costs
being tried each time: the same search, and for two kinds the same result but for the grid. Scores are compared as
they are, across kinds too, as the paper does with its Fisher information.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.passes.allocation import ALLOCATIONS
from graphprune.planning.budget import Budget
from graphprune.planning.interfaces import Allocation, Evidence
from graphprune.planning.ranking import Pool, ranked, shares_of


@dataclass(frozen=True)
class KindSplit(Allocation):
    """The best of all splits of the budget among kinds of groups, on a grid of `levels` costs."""

    levels: int = 1000

    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The share that each group keeps, by name."""
        budget.require()
        kinds: dict[str, list[int]] = {}
        for at, knob in enumerate(budget.knobs):
            kinds.setdefault(knob.groups[0].kind, []).append(at)
        pools = [
            Pool.of(budget, places, lambda k: torch.stack([ranked(scores[g.name]) for g in k.groups]).sum(0))
            for places in kinds.values()
        ]
        parts = best_split(pools, budget.target, self.levels)
        count = len(budget.knobs)

        def shares_at(pressure: float) -> Mapping[str, float]:
            # The split is met half-way. Costs that depend on each other may want a little less or more.
            on_the_way = [min(2 * pressure, 1) * p + max(2 * pressure - 1, 0) * (1 - p) for p in parts]
            gone = [pool.gone(count, part) for pool, part in zip(pools, on_the_way, strict=True)]
            return shares_of(budget, torch.stack(gone).sum(0))

        return budget.solve(shares_at)


def best_split(pools: list[Pool], target: float, levels: int) -> list[float]:
    """The part of each pool's cost that goes when together they give `target`, with the least sum of lost scores."""
    grid = torch.linspace(0, target, levels + 1, dtype=torch.float64)
    total, choices = _lost(pools[0], grid), []
    for pool in pools[1:]:
        both = total[:, None] + _lost(pool, grid)[None, :]
        # Entry (i, j) of this matrix says what is lost if the first give level i - j of the grid, and the pool level j.
        level, own = torch.arange(levels + 1)[:, None], torch.arange(levels + 1)[None, :]
        sums = both[(level - own).clamp(min=0), own].masked_fill(own > level, torch.inf)
        total, choice = sums.min(1)
        choices.append(choice)
    at, given = levels, []
    for choice in reversed(choices):
        given.append(int(choice[at]))
        at -= given[-1]
    costs = [float(grid[i]) for i in [at, *reversed(given)]]
    return [min(cost / float(pool.cost.sum()), 1.0) for cost, pool in zip(costs, pools, strict=True)]


def _lost(pool: Pool, grid: Tensor) -> Tensor:
    """The scores that a pool has lost once it gave each cost of the grid; infinite beyond what it has."""
    cost = torch.cat([torch.zeros(1, dtype=torch.float64), pool.cost.cumsum(0)])
    lost = torch.cat([torch.zeros(1, dtype=torch.float64), pool.worth.cumsum(0)])
    right = torch.searchsorted(cost, grid).clamp(1, len(pool.cost))
    inside = (grid - cost[right - 1]) / pool.cost[right - 1].clamp(min=1e-12)
    values = lost[right - 1] + inside * pool.worth[right - 1]
    return values.masked_fill(grid > cost[-1] * (1 + 1e-9), torch.inf)


ALLOCATIONS.register("kwon")(KindSplit())
