"""Growth of the loss without an expert, by the Fisher information of a factor on its output.

After Kwon et al. (arXiv:2204.09656), whose masks multiply heads and neurons. What other experts compute for the tokens
of a removed one is not counted.
"""

from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import OfExperts
from graphprune.planning.interfaces import Evidence


class ExpertGrowth(OfExperts):
    """Half of the mean over calibration batches of the squared derivative by a factor on the output."""

    routing = False
    gradients = True

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        gradients = evidence.known_gradients
        return gradients.masks[group.name] / (2 * gradients.batches)


SCORES.register("expert-growth")(ExpertGrowth())
