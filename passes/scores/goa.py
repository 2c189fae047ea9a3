"""GOA (arXiv:2407.19126): second moment of the contribution of an index, from its producers and consumers.

For row A_j of a producer and column B_j of a consumer the score is ``||B_j||^2 (A_j S A_j^T) / 2``, where S is the Gram
matrix of the inputs of A. Several producers, as in a gated layer, are summed. ``goa-heads`` scores heads as the paper
does, by the Jensen-Shannon divergence of their attention maps: of the two most similar heads one is removed, and so on.
The order within a pair is reconstructed: the head with the smaller second moment is removed. The distance between two
indices that hold several heads is that of their nearest heads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from graphprune.axes.algebra import primes
from graphprune.axes.groups import Group
from graphprune.axes.rule import Consumer
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import Outermost, at_consumers, at_producers, positions
from graphprune.planning.interfaces import Evidence
from graphprune.statistics.attention_maps import AttentionHeads, attention_heads


class SecondMoment(Outermost):
    """Half the energy of an index times the squared norm of its columns."""

    moments = "full"
    producers = True

    def applies(self, group: Group, consumers: Sequence[Consumer]) -> bool:
        """Whether the group holds neurons, channels or whole heads that linear layers produce."""
        return super().applies(group, consumers) and any("produced" in place.role for place in group.places)

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""

        def energy(producer: Consumer) -> Tensor:
            weight = evidence.matrix(producer)
            return ((weight @ evidence.moments(producer).gram) * weight).sum(1)

        norms = at_consumers(group, evidence, lambda consumer: evidence.matrix(consumer).square().sum(0))
        return norms * at_producers(group, evidence, energy) / 2


class AttentionMaps(SecondMoment):
    """Removal order of heads, the most similar first; the second moment for groups that hold no attention heads."""

    runs_inputs = True

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        moment = super().score(group, evidence)
        attentions = [h for h in attention_heads(evidence.program).values() if group.prime in primes(h.axis)]
        if group.linked or not attentions:
            return moment
        return order(torch.stack([_between(h, group, evidence) for h in attentions]).mean(0), moment[0])[None]


def order(distances: Tensor, moment: Tensor) -> Tensor:
    """Position of every index in the removal order, shape (size,), from distances of shape (size, size)."""
    retained, places = list(range(len(moment))), torch.zeros(len(moment), dtype=torch.float64)
    for place in range(len(moment) - 1):
        pairs = [(float(distances[i, j]), i, j) for n, i in enumerate(retained) for j in retained[n + 1 :]]
        _, i, j = min(pairs)
        removed = i if moment[i] < moment[j] else j
        places[removed] = place
        retained.remove(removed)
    places[retained[0]] = len(moment) - 1
    return places


def _between(attention: AttentionHeads, group: Group, evidence: Evidence) -> Tensor:
    """Smallest divergence between a head of one index and a head of another, shape (size, size)."""
    inside = positions(attention.axis, group, evidence.dependencies)[0]
    return attention.divergence[inside[:, None, :, None], inside[None, :, None, :]].amin((2, 3))


SCORES.register("goa")(SecondMoment())
SCORES.register("goa-heads")(AttentionMaps())
