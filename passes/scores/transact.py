"""TransAct (arXiv:2407.05690): the norm of the activations inside a module; from the authors' code.

``transact`` judges what lies innermost: neurons, and the dimensions of queries, keys and values, so that the
cache of keys and values shrinks. ``transact-heads`` judges whole heads, of which the norms of the
dimensions are brought together as ``mean + (10 / head_dim) max``.
"""

from collections.abc import Sequence

from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.axes.rule import Consumer
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import Outermost, at_consumers, at_producers, greatest
from graphprune.planning.interfaces import Evidence, Score

PEAK = 10.0


class Transact(Score):
    """``(sum over tokens of a_j^2)^(1/2)``, before the map that contracts it, else behind those that make it."""

    moments = "full"
    producers = True

    def applies(self, group: Group, consumers: Sequence[Consumer]) -> bool:
        """Innermost groups that linear maps make or contract."""
        return group.inner == 1 and (bool(consumers) or any("produced" in place.role for place in group.places))

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """The score of every index, shape (rows, group.size)."""
        if evidence.dependencies.consumers_of(group):
            return at_consumers(group, evidence, lambda c: evidence.moments(c).squares).sqrt()
        return at_producers(group, evidence, lambda producer: energy(producer, evidence)).sqrt()


class Heads(Outermost):
    """The norms of the columns of an index, their mean and their greatest; of one column alone its norm."""

    moments = "diagonal"

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """The score of every index, shape (rows, group.size)."""
        dependencies = evidence.dependencies
        total = at_consumers(group, evidence, lambda c: evidence.moments(c).squares.sqrt(), mean=True)
        for consumer in dependencies.consumers_of(group) if group.inner > 1 else ():
            norms = evidence.moments(consumer).squares.sqrt().reshape(-1, consumer.taps).sum(1)
            axis = dependencies.tensors[consumer.weight][consumer.dim]
            total += PEAK / group.inner * greatest(norms, axis, group, dependencies)
        return total


def energy(producer: Consumer, evidence: Evidence) -> Tensor:
    """The sum of squares of every output of a linear map, shape (outputs,)."""
    weight, seen = evidence.matrix(producer), evidence.moments(producer)
    squares = ((weight @ seen.second) * weight).sum(1)
    if producer.bias is None:
        return squares.clamp(min=0)
    bias = evidence.program.weights[producer.bias].double()
    bias = bias.repeat_interleave(len(squares) // len(bias))
    return (squares + bias * (2 * weight @ seen.first + seen.tokens * bias)).clamp(min=0)


SCORES.register("transact")(Transact())
SCORES.register("transact-heads")(Heads())
