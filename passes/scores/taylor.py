"""LLM-Pruner (arXiv:2305.11627): Taylor terms of the loss over the coupled weights; from the authors' code.

With the mean gradient g over calibration batches and the mean h of the squared gradients of single batches, ``taylor``
sums ``|g w|`` over all coupled weights, ``taylor-vector`` takes ``|sum g w|`` of each place, ``taylor-second`` sums
``w^2 h``, and ``taylor-mixed`` sums ``|g w - w^2 h / 2|``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import Outermost, at_places
from graphprune.planning.interfaces import Evidence

#: Maps weights, their gradients and the squared gradients to one number for each weight.
Element = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Taylor(Outermost):
    """Term of the Taylor series of the loss, summed over the coupled places.

    With `vector` the absolute value is taken after the sum of a place, not of every weight.
    """

    element: Element
    vector: bool = False

    gradients = True

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""

        def salience(name: str) -> Tensor:
            weight = evidence.program.weights[name].double()
            terms = self.element(weight, evidence.gradient(name).double(), evidence.curvature(name).double())
            return terms if self.vector else terms.abs()

        return torch.stack([place.abs() for place in at_places(group, evidence, salience)]).sum(0)


SCORES.register("taylor")(Taylor(lambda w, g, h: g * w))
SCORES.register("taylor-vector")(Taylor(lambda w, g, h: g * w, vector=True))
SCORES.register("taylor-second")(Taylor(lambda w, g, h: w.square() * h))
SCORES.register("taylor-mixed")(Taylor(lambda w, g, h: g * w - w.square() * h / 2))
