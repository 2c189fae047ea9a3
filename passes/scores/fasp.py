"""FASP (arXiv:2501.09412): column sums of the Wanda metric.

After FASP, section 3; from the abstract and reviews of the paper. The score of column j of a consumer W with inputs X
is ``||W_j||_1 ||x_j||_2``, summed over the consumers of a group.
"""

from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.axes.rule import Consumer
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import Innermost, at_consumers
from graphprune.planning.interfaces import Evidence


class Fasp(Innermost):
    """Sum of |W_ij| ||x_j|| over a column.

    It prunes groups that a linear layer contracts and that are innermost in its input: feed-forward neurons and value
    dimensions. Query and key dimensions have no such consumer and are not pruned.
    """

    moments = "diagonal"
    stacks = True

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""

        def columns(consumer: Consumer) -> Tensor:
            return evidence.matrix(consumer).abs().sum(0) * evidence.moments(consumer).squares.sqrt()

        return at_consumers(group, evidence, columns)


SCORES.register("fasp")(Fasp())
