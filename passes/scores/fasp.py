"""FASP (arXiv:2501.09412): the column sums of Wanda's metric.

After FASP, section 3; from the abstract and reviews of the paper. For column j of a consumer W with inputs X
the score is ||W_j||_1 ||x_j||_2. A group with several consumers adds up theirs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from graphprune.contracts import Consumer
from graphprune.dependencies import Group
from graphprune.methods import Evidence, Score
from graphprune.passes.scores import SCORES
from graphprune.spread import by_index, rows_of


class Fasp(Score):
    """Sum of |W_ij| ||x_j|| over a column.

    Groups are those that a linear map contracts and that lie innermost in it: the neurons of a feed-forward layer,
    the value dimensions of a head. Query and key dimensions have no such consumer and are left alone.
    """

    moments = "diagonal"

    def applies(self, group: Group, consumers: Sequence[Consumer]) -> bool:
        """Only innermost groups with consumers."""
        return bool(consumers) and group.inner == 1

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """The score of every index, shape (rows, group.size)."""
        total = torch.zeros(rows_of(group, evidence.dependencies), group.size, dtype=torch.float64)
        for consumer in evidence.dependencies.consumers_of(group):
            norms = evidence.moments(consumer).squares.sqrt()
            columns = (evidence.matrix(consumer).abs().sum(0) * norms).reshape(-1, consumer.taps).sum(1)
            axis = evidence.dependencies.tensors[consumer.weight][consumer.dim]
            total += by_index(columns, axis, group, evidence.dependencies)
        return total


SCORES.register("fasp")(Fasp())
