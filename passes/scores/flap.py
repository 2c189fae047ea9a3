"""FLAP (arXiv:2312.11983, section 3.2): fluctuation of the output that an input causes; from the authors' code.

A bias compensates for the mean of a removed input; its variance is the remaining error. The three metrics of the paper
are weighted input feature variance (``flap``), the variance alone (``flap-ifv``), and the weighted input feature norm
(``flap-wifn``).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.axes.rule import Consumer
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import Outermost, at_consumers
from graphprune.planning.interfaces import Evidence
from graphprune.statistics.moments import Moments


def weighted_variance(weight: Tensor, seen: Moments) -> Tensor:
    """Weighted input feature variance ``Var(x_j) ||W_j||^2``, shape (n,)."""
    return variance(weight, seen) * weight.square().sum(0)


def variance(weight: Tensor, seen: Moments) -> Tensor:
    """Input feature variance ``Var(x_j)``, shape (n,)."""
    return (seen.squares / seen.tokens - seen.mean.square()).clamp(min=0)


def weighted_norm(weight: Tensor, seen: Moments) -> Tensor:
    """Mean of ``|W_ij|`` times the root mean square of x_j, shape (n,)."""
    return weight.abs().mean(0) * (seen.squares / seen.tokens).sqrt()


@dataclass(frozen=True)
class Flap(Outermost):
    """A metric of the columns, averaged over the columns of a head."""

    metric: Callable[[Tensor, Moments], Tensor]

    moments = "diagonal"
    stacks = True

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""

        def columns(consumer: Consumer) -> Tensor:
            return self.metric(evidence.matrix(consumer), evidence.moments(consumer))

        return at_consumers(group, evidence, columns, mean=True)


SCORES.register("flap")(Flap(weighted_variance))
SCORES.register("flap-ifv")(Flap(variance))
SCORES.register("flap-wifn")(Flap(weighted_norm))
