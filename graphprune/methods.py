"""What a score, an allocation or a reconstruction promises."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from graphprune.budget import Budget
from graphprune.contracts import Consumer
from graphprune.dependencies import Dependencies, Group
from graphprune.program import Program
from graphprune.statistics import Moments, Statistics


@dataclass(frozen=True)
class Evidence:
    """What a score may look at: the program, its axes, and the statistics (None without calibration)."""

    program: Program
    dependencies: Dependencies
    statistics: Statistics | None
    seed: int = 0


class Score(ABC):
    """Says how much every index of a group matters."""

    needs_calibration: ClassVar[bool]

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

    One that `needs_calibration` looks at the statistics, or tries plans on calibration data (see `Objective`).
    """

    needs_calibration: ClassVar[bool] = False

    @abstractmethod
    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The share that each group keeps, by name, such that the budget is met before rounding.

        `scores` holds those of every index of every group of the budget, shape (rows, group.size).
        """


@dataclass(frozen=True)
class Refitted:
    """A refitted matrix, shape (m, kept columns), the relative damping used, and the squared output errors.

    `error_before` is that of dropping the columns, `error_after` that of the refit, relative to the output.
    """

    weight: Tensor
    damping: float
    error_before: float
    error_after: float


class Reconstruction(ABC):
    """Refits a consumer's weight after some of its columns are gone."""

    @abstractmethod
    def refit(
        self, weight: Tensor, kept: Tensor, seen: Moments, held_out: Moments | None, damping: float | None
    ) -> Refitted:
        """New values for the columns `kept` of a matrix `weight` of shape (m, n), from moments of its n inputs.

        With no `damping` given it is chosen on `held_out`, or is the method's default if that is None too.
        """
