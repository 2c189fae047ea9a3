"""What a score, an allocation or a reconstruction promises."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from graphprune.axes.groups import Dependencies, Group
from graphprune.axes.rule import Consumer
from graphprune.errors import CalibrationError
from graphprune.ir.program import Program
from graphprune.planning.budget import Budget
from graphprune.statistics.collector import Calibration
from graphprune.statistics.moments import (
    FullMoments,
    GradientSums,
    Moments,
    OutputGradients,
    ParameterGradients,
    ProducerMoments,
    Statistics,
)


@dataclass(frozen=True)
class Evidence:
    """What a score may look at: the program, its axes, and what calibration gathered (None without it).

    `statistics` are the moments of the inputs of linear maps, `gradients` those of a loss; see `ScoreMethod`.
    """

    program: Program
    dependencies: Dependencies
    statistics: Statistics | None
    seed: int = 0
    gradients: GradientSums | None = None

    def moments(self, consumer: Consumer) -> Moments:
        """What a linear map saw.

        Raises:
            CalibrationError: if nothing was gathered there.
        """
        if self.statistics is None or consumer.node not in self.statistics.moments:
            raise CalibrationError(
                f"there are no statistics at {consumer.node}; put calibrate before score, with the moments it asks for"
            )
        return self.statistics.moments[consumer.node]

    @property
    def known_gradients(self) -> GradientSums:
        """The gradients of a loss.

        Raises:
            CalibrationError: if there are none.
        """
        if self.gradients is None:
            raise CalibrationError("there are no gradients; put gradients before score")
        return self.gradients

    def gradient(self, name: str) -> Tensor:
        """The mean gradient of a parameter, in its shape."""
        return self.known_gradients.sums[name] / self.known_gradients.batches

    def curvature(self, name: str) -> Tensor:
        """The mean of the squared gradients of a parameter, in its shape."""
        return self.known_gradients.squares[name] / self.known_gradients.batches

    def sensitivity(self, consumer: Consumer) -> Tensor:
        """The second moments of the gradients at the outputs of a linear map, shape (m, m).

        Raises:
            CalibrationError: if nothing was gathered there.
        """
        if consumer.node not in self.known_gradients.output_grams:
            raise CalibrationError(
                f"there are no gradients at the outputs of {consumer.node}; gather them with of=outputs, or those of "
                "all maps with of=maps before the cut"
            )
        return self.known_gradients.output_grams[consumer.node]

    def matrix(self, consumer: Consumer) -> Tensor:
        """The weight of a linear map in double precision, shape (outputs, columns * taps)."""
        return consumer.matrix(self.program.weights[consumer.weight]).double()


class ScoreMethod(ABC):
    """Says how much every index of a group matters.

    `moments` says which sums over calibration inputs it reads: ``none``, their ``diagonal`` (squares and means), or
    the ``full`` second moments; at the maps that contract a group and, with `producers`, also at those that make it.
    `gradients`: it reads gradients of a loss; `gradients_of` says whether at the ``parameters``, or at the ``outputs``
    of the maps that contract a group. `runs_inputs`: it runs calibration inputs itself.
    """

    moments: ClassVar[str] = "none"
    producers: ClassVar[bool] = False
    gradients: ClassVar[bool] = False
    gradients_of: ClassVar[str] = "parameters"
    runs_inputs: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[type, ...]:
        """The facts that it reads."""
        read = {
            Statistics: self.moments != "none",
            FullMoments: self.moments == "full",
            ProducerMoments: self.producers,
            GradientSums: self.gradients,
            ParameterGradients: self.gradients and self.gradients_of == "parameters",
            OutputGradients: self.gradients and self.gradients_of == "outputs",
            Calibration: self.runs_inputs,
        }
        return tuple(fact for fact, needed in read.items() if needed)

    def applies(self, group: Group, consumers: Sequence[Consumer]) -> bool:
        """Does the method cut this group? By default every one."""
        return True

    @abstractmethod
    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """The score of every index, shape (rows, group.size); the highest are kept.

        There is one row, or a row for each index of the group that this one is linked to.
        """


class Allocation(ABC):
    """Says which share of its indices every group keeps.

    One that `needs_calibration` tries plans on calibration data (see `Objective`).
    `gradients`: it learns from gradients, which take more memory than running the model does. With
    `reads_sensitivities` it takes the fact `Sensitivities`, where the program has it, instead of trials of its own.
    """

    needs_calibration: ClassVar[bool] = False
    gradients: ClassVar[bool] = False
    reads_sensitivities: ClassVar[bool] = False

    @abstractmethod
    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The share that each group keeps, by name, such that the budget is met before rounding.

        `scores` holds those of every index of every group of the budget, shape (rows, group.size).
        """


@dataclass(frozen=True)
class Refitted:
    """A refitted matrix, shape (m, kept columns), the relative damping used, and the squared output errors.

    `error_before` is that of dropping the columns, `error_after` that of the refit, relative to the output. `bias`,
    shape (m,), is what the refit adds to every output, if it does.
    """

    weight: Tensor
    damping: float
    error_before: float
    error_after: float
    bias: Tensor | None = None


class Reconstruction(ABC):
    """Refits a consumer's weight after some of its columns are gone.

    `adds_bias`: it also adds a number to every output, so that the layer needs a bias, and somewhere to save it.
    """

    adds_bias: ClassVar[bool] = False

    @abstractmethod
    def refit(
        self, weight: Tensor, kept: Tensor, seen: Moments, held_out: Moments | None, damping: float | None
    ) -> Refitted:
        """New values for the columns `kept` of a matrix `weight` of shape (m, n), from moments of its n inputs.

        With no `damping` given it is chosen on `held_out`, or is the method's default if that is None too.
        """
