"""A plug-in of graphprune: a score, a refit and a recipe of one's own."""

import torch
from torch import Tensor

import graphprune as gp
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import rows_of
from graphprune.planning.interfaces import Evidence, Reconstruction, Refitted, ScoreMethod
from graphprune.statistics.moments import Moments
from graphprune.workflows.recipes.catalogue import Recipe, add


class Alternating(ScoreMethod):
    """Even indices before odd ones, and lower before higher ones."""

    def score(self, group: gp.Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        index = torch.arange(group.size, dtype=torch.float64)
        scores = -(index + group.size * (index % 2))
        return scores.expand(rows_of(group, evidence.dependencies), -1)


class Halved(Reconstruction):
    """Half of each retained column, so that its effect is plain to see."""

    def refit(
        self, weight: Tensor, retained: Tensor, moments: Moments, held_out: Moments | None, damping: float | None
    ) -> Refitted:
        """New values for the retained columns of a matrix, shape (outputs, retained inputs)."""
        return Refitted(weight[:, retained] / 2, 0.0, 1.0, 1.0)


SCORES.register("alternating")(Alternating())
RECONSTRUCTIONS.register("halved")(Halved())
add(
    Recipe(
        "example",
        "even neurons, halved weights",
        "a plug-in",
        "analyze | calibrate | score{by=alternating} | allocate | select | rewrite | refit{by=halved} | verify",
    )
)
