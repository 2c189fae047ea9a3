"""Kwon et al. (arXiv:2204.09656, section 4.1): the split of a budget between heads and neurons with the least loss.

Indices of one kind compete across all layers by their scores. Of all splits of the budget between the kinds, the one
with the highest sum of retained scores is taken. The paper tries every number of heads, which determines the number of
neurons. With more than two kinds, the kinds are joined one after the other, by dynamic programming over a fine grid of
costs: for two kinds this is the search of the paper up to the grid. Scores of different kinds are compared without
normalization, as the paper does with its Fisher information.
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
    """The best split of the budget among kinds of groups, on a grid of `levels` costs."""

    levels: int = 1000

    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The retained share of each group, by name."""
        budget.require()
        kinds: dict[str, list[int]] = {}
        for i, knob in enumerate(budget.knobs):
            kinds.setdefault(knob.groups[0].kind, []).append(i)
        pools = [
            Pool.of(budget, indices, lambda k: torch.stack([ranked(scores[g.name]) for g in k.groups]).sum(0))
            for indices in kinds.values()
        ]
        parts = best_split(pools, budget.target, self.levels)
        count = len(budget.knobs)

        def shares_at(multiplier: float) -> Mapping[str, float]:
            # The split is reached at 0.5. Costs that depend on each other may need a little less or more.
            scaled = [min(2 * multiplier, 1) * p + max(2 * multiplier - 1, 0) * (1 - p) for p in parts]
            removed = [pool.removed_shares(count, part) for pool, part in zip(pools, scaled, strict=True)]
            return shares_of(budget, torch.stack(removed).sum(0))

        return budget.solve(shares_at)


def best_split(pools: list[Pool], target: float, levels: int) -> list[float]:
    """The part of each pool's cost to remove, such that all give `target` with the least sum of removed scores."""
    grid = torch.linspace(0, target, levels + 1, dtype=torch.float64)
    total, choices = _removed_scores(pools[0], grid), []
    for pool in pools[1:]:
        both = total[:, None] + _removed_scores(pool, grid)[None, :]
        # Entry (i, j): the removed scores if the first pools give level i - j of the grid, and this pool level j.
        level, own = torch.arange(levels + 1)[:, None], torch.arange(levels + 1)[None, :]
        sums = both[(level - own).clamp(min=0), own].masked_fill(own > level, torch.inf)
        total, choice = sums.min(1)
        choices.append(choice)
    remaining, chosen = levels, []
    for choice in reversed(choices):
        chosen.append(int(choice[remaining]))
        remaining -= chosen[-1]
    costs = [float(grid[i]) for i in [remaining, *reversed(chosen)]]
    return [min(cost / float(pool.cost.sum()), 1.0) for cost, pool in zip(costs, pools, strict=True)]


def _removed_scores(pool: Pool, grid: Tensor) -> Tensor:
    """The sum of the scores that a pool loses at each cost of the grid; infinite beyond the cost of the pool."""
    cost = torch.cat([torch.zeros(1, dtype=torch.float64), pool.cost.cumsum(0)])
    removed = torch.cat([torch.zeros(1, dtype=torch.float64), pool.score.cumsum(0)])
    right = torch.searchsorted(cost, grid).clamp(1, len(pool.cost))
    inside = (grid - cost[right - 1]) / pool.cost[right - 1].clamp(min=1e-12)
    values = removed[right - 1] + inside * pool.score[right - 1]
    return values.masked_fill(grid > cost[-1] * (1 + 1e-9), torch.inf)


ALLOCATIONS.register("kwon")(KindSplit())
