"""Kwon et al. (arXiv:2204.09656): the diagonal Fisher information of masks, from the authors' code.

A mask multiplies the inputs of the maps that contract a group; the score is the sum over calibration batches of
the squared derivative of the loss by each of its entries, at one.
"""

from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import Outermost
from graphprune.planning.interfaces import Evidence


class Fisher(Outermost):
    """``sum over batches of (dL / dmask_j)^2``"""

    gradients = True

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """The score of every index, shape (rows, group.size)."""
        return evidence.known_gradients.masks[group.name]


SCORES.register("fisher")(Fisher())
