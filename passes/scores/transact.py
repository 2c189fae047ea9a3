"""TransAct (arXiv:2407.05690): norm of the activations inside a module; from the authors' code.

``transact`` scores innermost groups: neurons, and query, key and value dimensions, so that the KV cache shrinks.
``transact-heads`` scores whole heads, by ``mean + (10 / head_dim) max`` over the norms of their dimensions.
"""

from collections.abc import Sequence

from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.axes.rule import Consumer
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import Outermost, at_consumers, at_producers, greatest
from graphprune.planning.interfaces import Evidence, ScoreMethod

PEAK = 10.0


class Transact(ScoreMethod):
    """Norm ``(sum over tokens of a_j^2)^(1/2)``, at the inputs of consumers or else the outputs of producers."""

    moments = "full"
    producers = True

    def applies(self, group: Group, consumers: Sequence[Consumer]) -> bool:
        """Whether the group is innermost and linear layers produce or contract it."""
        return group.inner == 1 and (bool(consumers) or any("produced" in place.role for place in group.places))

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        if evidence.dependencies.consumers_of(group):
            return at_consumers(group, evidence, lambda c: evidence.moments(c).squares).sqrt()
        return at_producers(group, evidence, lambda producer: energy(producer, evidence)).sqrt()


class HeadNorms(Outermost):
    """Mean plus weighted maximum of the norms of the columns of an index; the norm itself for a single column."""

    moments = "diagonal"

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        dependencies = evidence.dependencies
        total = at_consumers(group, evidence, lambda c: evidence.moments(c).squares.sqrt(), mean=True)
        for consumer in dependencies.consumers_of(group) if group.inner > 1 else ():
            norms = evidence.moments(consumer).squares.sqrt().reshape(-1, consumer.taps).sum(1)
            axis = dependencies.tensors[consumer.weight][consumer.dim]
            total += PEAK / group.inner * greatest(norms, axis, group, dependencies)
        return total


def energy(producer: Consumer, evidence: Evidence) -> Tensor:
    """Sum of squares over tokens of every output of a linear layer, shape (outputs,)."""
    weight, seen = evidence.matrix(producer), evidence.moments(producer)
    squares = ((weight @ seen.gram) * weight).sum(1)
    if producer.bias is None:
        return squares.clamp(min=0)
    bias = evidence.program.weights[producer.bias].double()
    bias = bias.repeat_interleave(len(squares) // len(bias))
    return (squares + bias * (2 * weight @ seen.sums + seen.tokens * bias)).clamp(min=0)


SCORES.register("transact")(Transact())
SCORES.register("transact-heads")(HeadNorms())
