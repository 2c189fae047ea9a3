"""Kronecker-factored Optimal Brain Surgeon on columns: by how much the loss grows, after the best refit.

Where a map changes by dW the loss grows by ``1/2 tr(G dW S dW^T)``, with the second moments S of its inputs and G of
the gradients at its outputs (K-FAC, arXiv:1503.05671; for pruning EigenDamage, arXiv:1905.05934, section 3). Removed
columns cost ``1/2 tr(G W_g [(S^-1)_gg]^-1 W_g^T)``. The order is that of a greedy search with refits in between, as
that of OSSCAR (arXiv:2403.12983); other than errors of outputs, what an index costs compares among all maps.

Both moments are shrunk (`equations.SPARING`) towards multiples of the identity, which is the order by weights alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, pairwise

import torch
from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.axes.rule import Consumer
from graphprune.passes.scores import SCORES
from graphprune.passes.scores.obs import Problem, greedy
from graphprune.planning.index_scores import Outermost, rows_of
from graphprune.planning.interfaces import Evidence
from graphprune.planning.ranking import Point, hull
from graphprune.solvers.normal_equations import SPARING, damped

TIE = 1e-9  # by which later indices of one stretch matter more, relatively


class KObs(Outermost):
    """The growth of the loss when an index goes, after those that matter less; its curve is made convex."""

    moments = "full"
    gradients = True
    gradients_of = "outputs"

    def applies(self, group: Group, consumers: Sequence[Consumer]) -> bool:
        """Neurons, channels and whole heads, where the outputs of all maps have a layout."""
        return super().applies(group, consumers) and all(c.outputs is not None for c in consumers)

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """The score of every index, shape (rows, group.size)."""
        problems = [_problem(consumer, group, evidence) for consumer in evidence.dependencies.consumers_of(group)]
        place, points = greedy(problems, rows_of(group, evidence.dependencies), group.size)
        return _slopes(points)[place] / (2 * len(place))  # the indices of one place go from all rows


def _problem(consumer: Consumer, group: Group, evidence: Evidence) -> Problem:
    """The map with its outputs in units in which the growth of the loss is their squared error."""
    inputs, outputs = SPARING
    found = Problem.of(consumer, group, evidence, inputs)
    values, vectors = torch.linalg.eigh(damped(evidence.sensitivity(consumer), outputs))
    return replace(found, weight=(vectors * values.clamp(min=0).sqrt()).T @ found.weight)


def _slopes(points: Sequence[Point]) -> Tensor:
    """The slopes of the convex hull at every unit of the first number, never equal, so that they keep the order."""
    pieces = [[(y - v) / (x - w)] * round(x - w) for (w, v), (x, y) in pairwise(hull(points))]
    slopes = torch.tensor(list(chain(*pieces)), dtype=torch.float64)
    return slopes * (1 + TIE * torch.arange(len(slopes), dtype=torch.float64))


SCORES.register("k-obs")(KObs())
