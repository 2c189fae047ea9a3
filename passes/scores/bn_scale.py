"""Network slimming (arXiv:1708.06519): the scales of batch norms, which training with an L1 penalty makes sparse.

The score of a channel is ``|gamma|``. Channels that several norms scale, as those of a residual stream, get the mean.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx

from graphprune.axes.groups import Group, Place
from graphprune.ir.program import Program
from graphprune.passes.operators import RULES
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import by_index, rows_of
from graphprune.planning.interfaces import Evidence, ScoreMethod


class BatchNormScale(ScoreMethod):
    """Mean of ``|gamma|`` over the norms with running statistics that scale an index."""

    def scored(self, program: Program, groups: Sequence[Group]) -> tuple[Group, ...]:
        """Groups that batch norms scale."""
        scales = set(batch_norm_scales(program))
        return tuple(group for group in super().scored(program, groups) if _places(group, scales))

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        sums = count = torch.zeros(rows_of(group, evidence.dependencies), group.size, dtype=torch.float64)
        for place in _places(group, set(batch_norm_scales(evidence.program))):
            gamma = evidence.program.weights[place.parameter].double().abs()
            sums = sums + by_index(gamma, place.axis, group, evidence.dependencies)
            count = count + by_index(torch.ones_like(gamma), place.axis, group, evidence.dependencies)
        return sums / count.clamp(min=1)


def batch_norm_scales(program: Program) -> Iterator[str]:
    """Names of the parameters by which norms with running statistics scale their channels."""
    for node in program.graph.nodes:
        rule = RULES.get(node.target)
        if rule is not None and rule.running_statistics(node) and isinstance(scale := node.args[1], fx.Node):
            yield from program.names([scale]) & program.parameters


def _places(group: Group, scales: set[str]) -> list[Place]:
    return [place for place in group.places if place.parameter in scales]


SCORES.register("bn-scale")(BatchNormScale())
