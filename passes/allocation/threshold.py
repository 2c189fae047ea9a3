"""FLAP's adaptive allocation (arXiv:2312.11983, section 3.3, AL-AM): one threshold for standardised scores.

The scores of a group are those of one kind in one layer; they are brought to mean 0 and deviation 1. An index counts as
much as it costs. In the names of the paper: ``global`` has adaptive ratios across layers and modules (AL-AM),
``global-layers`` across the layers of each kind, every kind giving the same share (AL-UM), and ``global-kinds`` across
the kinds of each layer, every layer giving the same share (UL-AM). Uniform in both (UL-UM) is ``uniform``.
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
    """Every pool of groups gives the same share of its cost, the indices with the lowest standardised scores first."""

    pool: Callable[[Knob], str]

    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The share that each group keeps, by name."""
        pools: dict[str, list[int]] = {}
        for at, knob in enumerate(budget.knobs):
            pools.setdefault(self.pool(knob), []).append(at)
        found = [Pool.of(budget, places, lambda knob: standardised(knob, scores)) for places in pools.values()]
        count = len(budget.knobs)
        return budget.solve(lambda part: shares_of(budget, torch.stack([p.gone(count, part) for p in found]).sum(0)))


def standardised(knob: Knob, scores: Mapping[str, Tensor]) -> Tensor:
    """The scores of a knob's indices in the order in which they go, in deviations from their mean, shape (size,)."""
    values = [ranked(scores[group.name]) for group in knob.groups]
    spread = [(v - v.mean()) / v.std(correction=0).clamp(min=torch.finfo(v.dtype).tiny) for v in values]
    return torch.stack(spread).mean(0)


ALLOCATIONS.register("global")(Threshold(lambda knob: ""))
ALLOCATIONS.register("global-layers")(Threshold(lambda knob: knob.groups[0].kind))
ALLOCATIONS.register("global-kinds")(Threshold(lambda knob: knob.groups[0].layer))
