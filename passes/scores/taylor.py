"""LLM-Pruner (arXiv:2305.11627): how much the loss changes without what is coupled; from the authors' code.

With the gradient g of a batch of calibration inputs and the sum h of squared gradients of single batches: ``taylor``
adds up ``|g w|`` over all coupled weights, ``taylor-vector`` takes ``|sum g w|`` of each place, ``taylor-second`` adds
up ``w^2 h``, and ``taylor-mixed`` ``|g w - w^2 h / 2|``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import Outermost, at_places
from graphprune.planning.interfaces import Evidence

#: From weights, their gradients and the squares of those to one number a weight.
Element = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Taylor(Outermost):
    """A term of the Taylor series of the loss, summed over the coupled places; `vector`: absolute after the sum."""

    element: Element
    vector: bool = False

    gradients = True

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """The score of every index, shape (rows, group.size)."""

        def salience(name: str) -> Tensor:
            weight = evidence.program.weights[name].double()
            found = self.element(weight, evidence.gradient(name).double(), evidence.curvature(name).double())
            return found if self.vector else found.abs()

        return torch.stack([place.abs() for place in at_places(group, evidence, salience)]).sum(0)


SCORES.register("taylor")(Taylor(lambda w, g, h: g * w))
SCORES.register("taylor-vector")(Taylor(lambda w, g, h: g * w, vector=True))
SCORES.register("taylor-second")(Taylor(lambda w, g, h: w.square() * h))
SCORES.register("taylor-mixed")(Taylor(lambda w, g, h: g * w - w.square() * h / 2))
