"""GOA (arXiv:2407.19126): the second moment of what goes through an index, from producer and consumer together.

For row A_j of the map that makes an index and column B_j of the one that contracts it, ``||B_j||^2 (A_j S A_j^T) / 2``,
where S belongs to the inputs of A. Where several maps make it, as in a gated layer, theirs are added up. ``goa-heads``
judges heads as the paper does, by the Jensen-Shannon divergence of their attention maps: of the two that are most alike
one goes, and so on. How the paper orders heads by their similarity could not be had in detail: here the one of the
pair goes that has less of the second moment. An index that holds several heads is as near to another as its
nearest head.
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
from graphprune.statistics.attention_maps import Heads, heads


class SecondMoment(Outermost):
    """Half the energy of the inputs of an index times the squared norm of its columns."""

    moments = "full"
    producers = True

    def applies(self, group: Group, consumers: Sequence[Consumer]) -> bool:
        """Neurons, channels and whole heads that linear maps make."""
        return super().applies(group, consumers) and any("produced" in place.role for place in group.places)

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """The score of every index, shape (rows, group.size)."""

        def energy(producer: Consumer) -> Tensor:
            weight = evidence.matrix(producer)
            return ((weight @ evidence.moments(producer).second) * weight).sum(1)

        norms = at_consumers(group, evidence, lambda consumer: evidence.matrix(consumer).square().sum(0))
        return norms * at_producers(group, evidence, energy) / 2


class AttentionMaps(SecondMoment):
    """The order in which heads go, the most alike first; of what is no head of an attention the second moment."""

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """The score of every index, shape (rows, group.size)."""
        moment = super().score(group, evidence)
        found = [h for h in heads(evidence.program).values() if group.prime in primes(h.axis)]
        if group.linked or not found:
            return moment
        return order(torch.stack([_between(h, group, evidence) for h in found]).mean(0), moment[0])[None]


def order(distances: Tensor, moment: Tensor) -> Tensor:
    """The place of every index in the order in which they go, shape (size,), by distances of shape (size, size)."""
    left, places = list(range(len(moment))), torch.zeros(len(moment), dtype=torch.float64)
    for place in range(len(moment) - 1):
        pairs = [(float(distances[i, j]), i, j) for n, i in enumerate(left) for j in left[n + 1 :]]
        _, i, j = min(pairs)
        gone = i if moment[i] < moment[j] else j
        places[gone] = place
        left.remove(gone)
    places[left[0]] = len(moment) - 1
    return places


def _between(found: Heads, group: Group, evidence: Evidence) -> Tensor:
    """The least divergence of a head of one index from a head of another, shape (size, size)."""
    inside = positions(found.axis, group, evidence.dependencies)[0]
    return found.divergence[inside[:, None, :, None], inside[None, :, None, :]].amin((2, 3))


SCORES.register("goa")(SecondMoment())
SCORES.register("goa-heads")(AttentionMaps())
