"""PruneNet (arXiv:2501.15296): keep the spectrum of singular values, without any calibration data.

The authors train a policy whose reward is the Kolmogorov-Smirnov distance between the spectra of a matrix before and
after. That distance cannot tell single rows apart: without one row, every singular value lies between two old ones, so
that it is one step for each of them. Here, without training, it is the distance in the mean (Wasserstein's, which for
spectra that only shrink is the loss of their sum), to first order: row j holds ``sum_k s_k u_jk^2``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from graphprune.axes.algebra import resolve
from graphprune.axes.groups import Group
from graphprune.axes.rule import Consumer
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import at_producers
from graphprune.planning.interfaces import Evidence, Score


class Spectrum(Score):
    """How much of the sum of the singular values the rows of an index hold, in the maps that make it."""

    def applies(self, group: Group, consumers: Sequence[Consumer]) -> bool:
        """Neurons and channels: what is alone in the dimension that is contracted, and made by a linear map."""
        made = any("produced" in place.role for place in group.places)
        return made and bool(consumers) and all(resolve(consumer.axis) is group.prime for consumer in consumers)

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """The score of every index, shape (rows, group.size)."""
        return at_producers(group, evidence, lambda producer: held(evidence.matrix(producer)))


def held(matrix: Tensor) -> Tensor:
    """``sum_k s_k u_jk^2`` of every row, the diagonal of ``(W W^T)^(1/2)``; they add up to the nuclear norm."""
    u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
    shares: Tensor = u.square() @ s
    return shares


SCORES.register("prunenet")(Spectrum())
