"""SLEB (arXiv:2402.09025, section 3.2): the loss of the current model without a block, computed again after each."""

from collections.abc import Callable, Sequence

from graphprune.axes.residual_blocks import Importance, Unit
from graphprune.evaluation.masked_loss import Objective
from graphprune.ir.program import Program
from graphprune.passes.depth import IMPORTANCES


class Sleb(Importance):
    """The loss on calibration data without the block: for a language model, the negative log likelihood of the next
    token; for others, the error of the outputs."""

    stepwise = True

    def importance(self, program: Program, units: Sequence[Unit], without: Callable[[Unit], Program]) -> list[float]:
        """The importance of every unit."""
        objective = Objective.of(program)
        return [objective.loss_of(without(unit)) for unit in units]


IMPORTANCES.register("sleb")(Sleb())
