"""COMP (arXiv:2501.15255): the condition of the matrix of inputs, as the importance of each of them.

After COMP; its formula is not public, and the abstract speaks of a matrix condition only. Two reconstructions: ``comp``
is how far the logarithm of the condition number of S falls when input j leaves, so what the condition does not feel
goes first, and an input of massive values, which alone makes it, goes last; ``comp-inflation`` the inverse of the
variance inflation factor ``C_jj [C^-1]_jj``, which is the share of the variance of input j that the others do not
explain. Neither looks at the weights.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import Innermost, at_consumers
from graphprune.planning.interfaces import Evidence
from graphprune.solvers.normal_equations import damped
from graphprune.statistics.moments import Moments

RIDGE = 1e-8  # of the mean of the diagonal: as much as makes every matrix invertible; more would hide what is redundant
STEPS = 100  # of bisection: no number in double precision needs more


def condition(seen: Moments) -> Tensor:
    """How far the logarithm of the condition number of the damped S falls without each of its inputs, shape (n,).

    The eigenvalues of S without row and column j are the roots of ``sum_i q_ji^2 / (e_i - x)`` for the eigenvalues e
    and eigenvectors q of S. They lie between those of S, so that no fall is below 0.
    """
    if len(seen.second) < 3:
        return torch.zeros(len(seen.second), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(damped(seen.second, RIDGE))
    shares = vectors.square()
    lowest, highest = (_root(values, shares, *values[i : i + 2]) for i in (0, len(values) - 2))
    found: Tensor = (values[-1] / values[0]).log() - (highest / lowest).log()
    return found


def unexplained(seen: Moments) -> Tensor:
    """The share of the variance of every input that the others do not explain, shape (n,)."""
    covariance = damped(seen.second / seen.tokens - seen.mean.outer(seen.mean), RIDGE)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
    found: Tensor = 1 / (covariance.diagonal() * inverse.diagonal())
    return found


def _root(values: Tensor, shares: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The root between two neighbouring eigenvalues for every input, shape (n,); the sum rises between them."""
    bounds = low.expand(len(values)).clone(), high.expand(len(values)).clone()
    for _ in range(STEPS):
        middle = (bounds[0] + bounds[1]) / 2
        above = (shares / (values - middle[:, None])).sum(1) > 0
        bounds = torch.where(above, bounds[0], middle), torch.where(above, middle, bounds[1])
    return (bounds[0] + bounds[1]) / 2


@dataclass(frozen=True)
class Comp(Innermost):
    """What `measure` says of the inputs of a linear map, averaged over the columns of an index."""

    measure: Callable[[Moments], Tensor]

    moments = "full"

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """The score of every index, shape (rows, group.size)."""
        return at_consumers(group, evidence, lambda c: self.measure(evidence.moments(c)), mean=True)


SCORES.register("comp")(Comp(condition))
SCORES.register("comp-inflation")(Comp(unexplained))
