"""Growth of the loss on removal, in one unit for whole experts and for all that linear layers contract.

Whole experts are rated as by the score ``expert-growth``, and neurons, channels and heads as by ``k-obs``. Both sum
squared derivatives of the loss by what a row loses, over the rows of the calibration inputs. The scores of neurons are
those after the best refit. For experts, a constant factor stands for what retained ones compute instead.
"""

from collections.abc import Sequence

from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.ir.program import Program
from graphprune.passes.scores import SCORES
from graphprune.passes.scores.expert_growth import ExpertGrowth
from graphprune.passes.scores.k_obs import KObs
from graphprune.passes.scores.obs import Problem, removal_order
from graphprune.planning.interfaces import Evidence

MERGED = 0.5  # a small mixture lost less with it than with 1, at 30 and 50 %, and no more than with 0.25


class Growth(KObs):
    """Growth of the loss, also on removal of whole experts, in addition to that of neurons of all experts."""

    experts = ExpertGrowth()

    def scored(self, program: Program, groups: Sequence[Group]) -> tuple[Group, ...]:
        """The groups of experts, and those that linear layers contract."""
        routed = {group.name for group in self.experts.scored(program, groups)}
        contracted = super().scored(program, [group for group in groups if not group.routed])
        names = routed | {group.name for group in contracted}
        return tuple(group for group in groups if group.name in names)

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        return MERGED * self.experts.score(group, evidence) if group.routed else super().score(group, evidence)


class GrowthInOrder(Growth):
    """Growth of the loss as by ``growth``, in the removal order of ``osscar``, which counts tokens and outputs alike.

    So groups are compared by the loss, and indices within a group by the error of its outputs: the growth is estimated
    from few gradients, and its order left more loss behind in a small decoder.
    """

    moments = "full"

    def ordered(self, place: Tensor, group: Group, evidence: Evidence) -> Tensor:
        """Position of every index in the removal order, shape (rows, group.size)."""
        return removal_order(group, evidence, lambda consumer: Problem.of(consumer, group, evidence))[0]


SCORES.register("growth")(Growth())
SCORES.register("growth-osscar")(GrowthInOrder())
