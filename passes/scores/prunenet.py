"""PruneNet (arXiv:2501.15296): preservation of the singular value spectrum, without calibration data.

After PruneNet; score reconstructed. The authors train a policy whose reward is the Kolmogorov-Smirnov distance between
the spectra before and after pruning. That distance does not distinguish single rows: on removal of any row the singular
values interlace with the old ones, so it is one step for each row. This score needs no training. It is the Wasserstein
distance (for shrinking spectra the decrease of their sum) to first order: row j contributes ``sum_k s_k u_jk^2``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from graphprune.axes.algebra import resolve
from graphprune.axes.groups import Group
from graphprune.axes.rule import Consumer
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import at_producers
from graphprune.planning.interfaces import Evidence, ScoreMethod


class Spectrum(ScoreMethod):
    """Contribution of the rows of an index to the nuclear norm of its producers."""

    def applies(self, group: Group, consumers: Sequence[Consumer]) -> bool:
        """Whether the group holds neurons or channels: the whole contracted dimension, produced by a linear layer."""
        produced = any("produced" in place.role for place in group.places)
        return produced and bool(consumers) and all(resolve(consumer.axis) is group.prime for consumer in consumers)

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        return at_producers(group, evidence, lambda producer: nuclear_shares(evidence.matrix(producer)))


def nuclear_shares(matrix: Tensor) -> Tensor:
    """Share ``sum_k s_k u_jk^2`` of every row in the nuclear norm: the diagonal of ``(W W^T)^(1/2)``, shape (m,)."""
    u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
    shares: Tensor = u.square() @ s
    return shares


SCORES.register("prunenet")(Spectrum())
