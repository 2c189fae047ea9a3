"""Kronecker-factored Optimal Brain Surgeon on columns: growth of the loss after the best refit.

A weight change dW of a linear layer increases the loss by ``1/2 tr(G dW S dW^T)``, with the Gram matrices S of its
inputs and G of the gradients at its outputs (K-FAC, arXiv:1503.05671; for pruning EigenDamage, arXiv:1905.05934,
section 3). Removing the columns g costs ``1/2 tr(G W_g [(S^-1)_gg]^-1 W_g^T)``. The order is that of a greedy search
with refits in between, as in OSSCAR (arXiv:2403.12983). Unlike output errors, these costs compare across layers.

S counts a token by the energy of its gradients, so that the Kronecker product of both is nearer to the Fisher
information (see `gradient_taps.WeightedInputs`). Both Gram matrices are shrunk
(`normal_equations.cautious_dampings`) towards multiples of the identity, where the order depends on
the weights alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, pairwise

import torch
from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.axes.rule import Consumer
from graphprune.passes.scores import SCORES
from graphprune.passes.scores.obs import Problem, removal_order
from graphprune.planning.index_scores import Outermost
from graphprune.planning.interfaces import Evidence
from graphprune.planning.ranking import Point, hull
from graphprune.solvers.normal_equations import add_damping, cautious_dampings

TIE = 1e-9  # relative increase of the score along equal slopes, which keeps the order


class KObs(Outermost):
    """Growth of the loss on removal of an index after all less important ones, made convex."""

    gradients = True
    gradients_of = "outputs"
    stacks = True

    def applies(self, group: Group, consumers: Sequence[Consumer]) -> bool:
        """Whether the group holds neurons, channels or whole heads whose consumers lay out their outputs by token.

        A group is contracted by members of stacks or by other consumers, not by both.
        """
        stacked = [c.member is not None for c in consumers]
        laid_out = all(stacked) or all(c.outputs is not None for c in consumers)
        return super().applies(group, consumers) and laid_out and any(stacked) == all(stacked)

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        place, points = removal_order(group, evidence, lambda consumer: _problem(consumer, group, evidence))
        place = self.ordered(place, group, evidence)
        return _slopes(points)[place] / (2 * len(place))  # indices at one position are removed from all rows

    def ordered(self, place: Tensor, group: Group, evidence: Evidence) -> Tensor:
        """Position of every index in the removal order, shape (rows, group.size): by default that of these costs."""
        return place


def _problem(consumer: Consumer, group: Group, evidence: Evidence) -> Problem:
    """Least-squares problem of a layer, with outputs scaled so that the squared error is the growth of the loss."""
    inputs, outputs = cautious_dampings(consumer, evidence.known_gradients)
    problem = Problem.with_gram(evidence.weighted_gram(consumer), consumer, group, evidence, inputs)
    values, vectors = torch.linalg.eigh(add_damping(evidence.sensitivity(consumer), outputs))
    return replace(problem, weight=(vectors * values.clamp(min=0).sqrt()).T @ problem.weight)


def _slopes(points: Sequence[Point]) -> Tensor:
    """Slopes of the convex hull at every unit of the first coordinate, made distinct to keep the order."""
    pieces = [[(y - v) / (x - w)] * round(x - w) for (w, v), (x, y) in pairwise(hull(points))]
    slopes = torch.tensor(list(chain(*pieces)), dtype=torch.float64)
    return slopes * (1 + TIE * torch.arange(len(slopes), dtype=torch.float64))


SCORES.register("k-obs")(KObs())
