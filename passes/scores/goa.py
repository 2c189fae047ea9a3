"""GOA (arXiv:2407.19126): the second moment of what goes through an index, from producer and consumer together.

For row A_j of the map that makes an index and column B_j of the one that contracts it, ``||B_j||^2 (A_j S A_j^T) / 2``,
where S belongs to the inputs of A. Where several maps make it, as in a gated layer, theirs are added up. The paper
judges heads by the similarity of their attention maps instead, which fused attention never shows; here they add up
their dimensions.
"""

from collections.abc import Sequence

from torch import Tensor

from graphprune.contracts import Consumer
from graphprune.dependencies import Group
from graphprune.methods import Evidence, Score
from graphprune.passes.scores import SCORES
from graphprune.spread import at_consumers, at_producers, outermost


class SecondMoment(Score):
    """Half the energy of the inputs of an index times the squared norm of its columns."""

    moments = "full"
    producers = True

    def applies(self, group: Group, consumers: Sequence[Consumer]) -> bool:
        """Neurons, channels and whole heads that linear maps make."""
        return outermost(group, consumers) and any("produced" in place.role for place in group.places)

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """The score of every index, shape (rows, group.size)."""

        def energy(producer: Consumer) -> Tensor:
            weight = evidence.matrix(producer)
            return ((weight @ evidence.moments(producer).second) * weight).sum(1)

        norms = at_consumers(group, evidence, lambda consumer: evidence.matrix(consumer).square().sum(0))
        return norms * at_producers(group, evidence, energy) / 2


SCORES.register("goa")(SecondMoment())
