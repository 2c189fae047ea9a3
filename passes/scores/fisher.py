"""Kwon et al. (arXiv:2204.09656): diagonal Fisher information of masks, from the authors' code.

A mask multiplies the inputs of the linear layers that contract a group. The score is the squared derivative of the loss
with respect to each mask entry, at one, summed over calibration batches.
"""

from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import Outermost
from graphprune.planning.interfaces import Evidence


class Fisher(Outermost):
    """``sum over batches of (dL / dmask_j)^2``."""

    gradients = True

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        return evidence.known_gradients.masks[group.name]


SCORES.register("fisher")(Fisher())
