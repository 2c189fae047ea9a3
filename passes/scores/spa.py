"""SPA (arXiv:2403.18955): a criterion of single weights, aggregated over all coupled places.

After SPA; from the abstract. At every place the criterion is summed for each index and divided by its mean over the
indices, so that large tensors do not dominate small ones. Then the places are reduced to one number. The criterion is
``|w|``, or with ``spa-gradient`` the connection sensitivity ``|g w|``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import at_places
from graphprune.planning.interfaces import Evidence, ScoreMethod

#: Reduces values of shape (places, rows, size) to one score for each index.
Reduction = Callable[[Tensor], Tensor]
REDUCTIONS: dict[str, Reduction] = {
    "sum": partial(torch.sum, dim=0),
    "mean": partial(torch.mean, dim=0),
    "max": partial(torch.amax, dim=0),
    "product": partial(torch.prod, dim=0),
}


@dataclass(frozen=True)
class Spa(ScoreMethod):
    """Absolute weights at an index, relative to the mean over all indices, reduced over the places."""

    reduce: Reduction

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        places = at_places(group, evidence, lambda name: self.criterion(name, evidence))
        tiny = torch.finfo(torch.float64).tiny
        return self.reduce(torch.stack([place / place.mean().clamp(min=tiny) for place in places]))

    def criterion(self, name: str, evidence: Evidence) -> Tensor:
        """Criterion of every weight of a parameter, in its shape."""
        return evidence.program.weights[name].abs()


class Sensitive(Spa):
    """Connection sensitivity ``|g w|`` in the place of ``|w|``."""

    gradients = True

    def criterion(self, name: str, evidence: Evidence) -> Tensor:
        """Criterion of every weight of a parameter, in its shape."""
        return (evidence.program.weights[name] * evidence.gradient(name)).abs()


SCORES.register("spa")(Spa(REDUCTIONS["sum"]))
SCORES.register("spa-mean")(Spa(REDUCTIONS["mean"]))
SCORES.register("spa-max")(Spa(REDUCTIONS["max"]))
SCORES.register("spa-product")(Spa(REDUCTIONS["product"]))
SCORES.register("spa-gradient")(Sensitive(REDUCTIONS["sum"]))
