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
    """Half of the sum over its tokens of the squared derivative by a factor on the output for a token."""

    routing = False
    gradients = True

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        return evidence.known_gradients.routed[group.name] / 2


SCORES.register("expert-growth")(ExpertGrowth())
