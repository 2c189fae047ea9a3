"""COMP (arXiv:2501.15255): importance of an input by the condition number of the Gram matrix.

After COMP; formula reconstructed, because the abstract mentions a matrix condition only. ``comp`` is the decrease of
the log condition number of the Gram matrix ``S = X X^T`` when input j is removed. An input that the condition number
does not depend on is removed first; an input with massive activations, which alone determines it, is removed last.
``comp-inflation`` is the inverse of the variance inflation factor ``C_jj [C^-1]_jj`` of the covariance C: the share of
the variance of input j that the other inputs do not explain. Neither uses the weights.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import Innermost, at_consumers
from graphprune.planning.interfaces import Evidence
from graphprune.solvers.normal_equations import add_damping
from graphprune.statistics.moments import Moments

RIDGE = 1e-8  # of the mean of the diagonal: enough to invert every matrix; more would hide redundant inputs
STEPS = 100  # of bisection: enough for double precision


def condition(seen: Moments) -> Tensor:
    """Decrease of the log condition number of the damped S on removal of each input, shape (n,).

    The eigenvalues of S without row and column j are the roots of ``sum_i q_ji^2 / (e_i - x)`` for the eigenvalues e
    and eigenvectors q of S. They interlace with those of S, so the decrease is never negative.
    """
    if len(seen.gram) < 3:
        return torch.zeros(len(seen.gram), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(add_damping(seen.gram, RIDGE))
    shares = vectors.square()
    lowest, highest = (_root(values, shares, *values[i : i + 2]) for i in (0, len(values) - 2))
    decrease: Tensor = (values[-1] / values[0]).log() - (highest / lowest).log()
    return decrease


def unexplained(seen: Moments) -> Tensor:
    """Share of the variance of every input that the other inputs do not explain, shape (n,)."""
    covariance = add_damping(seen.gram / seen.tokens - seen.mean.outer(seen.mean), RIDGE)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
    shares: Tensor = 1 / (covariance.diagonal() * inverse.diagonal())
    return shares


def _root(values: Tensor, shares: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Root between two neighboring eigenvalues for every input, shape (n,), by bisection of an increasing function."""
    bounds = low.expand(len(values)).clone(), high.expand(len(values)).clone()
    for _ in range(STEPS):
        middle = (bounds[0] + bounds[1]) / 2
        above = (shares / (values - middle[:, None])).sum(1) > 0
        bounds = torch.where(above, bounds[0], middle), torch.where(above, middle, bounds[1])
    return (bounds[0] + bounds[1]) / 2


@dataclass(frozen=True)
class Comp(Innermost):
    """Value of `measure` for the inputs of a linear layer, averaged over the columns of an index."""

    measure: Callable[[Moments], Tensor]

    moments = "full"

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        return at_consumers(group, evidence, lambda c: self.measure(evidence.moments(c)), mean=True)


SCORES.register("comp")(Comp(condition))
SCORES.register("comp-inflation")(Comp(unexplained))
