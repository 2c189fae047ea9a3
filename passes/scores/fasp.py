"""FASP (arXiv:2501.09412): the column sums of Wanda's metric.

After FASP, section 3; from the abstract and reviews of the paper. For column j of a consumer W with inputs X
the score is ||W_j||_1 ||x_j||_2. A group with several consumers adds up theirs.
"""

from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.axes.rule import Consumer
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import Innermost, at_consumers
from graphprune.planning.interfaces import Evidence


class Fasp(Innermost):
    """Sum of |W_ij| ||x_j|| over a column.

    Groups are those that a linear map contracts and that lie innermost in it: the neurons of a feed-forward layer,
    the value dimensions of a head. Query and key dimensions have no such consumer and are left alone.
    """

    moments = "diagonal"

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """The score of every index, shape (rows, group.size)."""

        def columns(consumer: Consumer) -> Tensor:
            return evidence.matrix(consumer).abs().sum(0) * evidence.moments(consumer).squares.sqrt()

        return at_consumers(group, evidence, columns)


SCORES.register("fasp")(Fasp())
