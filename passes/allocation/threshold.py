"""FLAP's adaptive allocation (arXiv:2312.11983, section 3.3, AL-AM): one threshold for standardized scores.

The scores of a group, one kind in one layer, are standardized to mean 0 and deviation 1. An index is weighted by its
cost. In the terms of the paper: ``global`` has adaptive ratios across layers and modules (AL-AM), ``global-layers``
across the layers of each kind, with the same share of every kind (AL-UM), and ``global-kinds`` across the kinds of each
layer, with the same share of every layer (UL-AM). Uniform in both (UL-UM) is ``uniform``. ``pooled`` has one
threshold for scores as they are, as in network slimming (arXiv:1708.06519) and LAMP (arXiv:2010.07611).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.passes.allocation import ALLOCATIONS
from graphprune.planning.budget import Budget, Knob
from graphprune.planning.interfaces import Allocation, Evidence
from graphprune.planning.ranking import Pool, ranked, shares_of


@dataclass(frozen=True)
class Threshold(Allocation):
    """One share of the cost of every pool of groups, removed in the order of scores, standardized or `raw`."""

    pool: Callable[[Knob], str]
    raw: bool = False

    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The retained share of each group, by name."""
        pools: dict[str, list[int]] = {}
        for i, knob in enumerate(budget.knobs):
            pools.setdefault(self.pool(knob), []).append(i)
        order = unchanged if self.raw else standardized
        ordered = [Pool.of(budget, indices, lambda knob: order(knob, scores)) for indices in pools.values()]
        count = len(budget.knobs)

        def removed(part: float) -> Tensor:
            return torch.stack([pool.removed_shares(count, part) for pool in ordered]).sum(0)

        return budget.solve(lambda part: shares_of(budget, removed(part)))


def standardized(knob: Knob, scores: Mapping[str, Tensor]) -> Tensor:
    """The scores of a knob in order of removal, as deviations from the mean in standard deviations, shape (size,)."""
    values = [ranked(scores[group.name]) for group in knob.groups]
    spread = [(v - v.mean()) / v.std(correction=0).clamp(min=torch.finfo(v.dtype).tiny) for v in values]
    return torch.stack(spread).mean(0)


def unchanged(knob: Knob, scores: Mapping[str, Tensor]) -> Tensor:
    """The scores of a knob in order of removal, shape (size,); the mean of groups that must have one width."""
    return torch.stack([ranked(scores[group.name]) for group in knob.groups]).mean(0)


ALLOCATIONS.register("global")(Threshold(lambda knob: ""))
ALLOCATIONS.register("global-layers")(Threshold(lambda knob: knob.groups[0].kind))
ALLOCATIONS.register("global-kinds")(Threshold(lambda knob: knob.groups[0].layer))
ALLOCATIONS.register("pooled")(Threshold(lambda knob: "", raw=True))
