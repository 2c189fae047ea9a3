"""What passes leave on a program for later ones."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from graphprune.axes.groups import Dependencies, Group
from graphprune.ir.weights import Weights
from graphprune.planning.destination import Destination
from graphprune.planning.interfaces import Refitted
from graphprune.statistics.moments import (
    FactorGradients,
    FullMoments,
    GradientSums,
    OutputGradients,
    ParameterGradients,
    ProducerMoments,
    Statistics,
)


@dataclass(frozen=True)
class Eligible:
    """The groups that may be cut for a destination, and why other kinds may not.

    `widths` holds, for kinds of which the destination allows only some widths, those that it allows.
    """

    groups: Sequence[Group]
    destination: Destination
    refused: Mapping[str, str]
    widths: Mapping[str, Collection[int]]


@dataclass(frozen=True)
class Scores:
    """The score of every index of every group in play, shape (rows, size), and the method that made it."""

    by_group: Mapping[str, Tensor]
    method: str


@dataclass(frozen=True)
class Shares:
    """The share of its indices that each group keeps; and how much is to go of a unit, if that is the aim."""

    by_group: Mapping[str, float]
    target: int | None
    unit: str = "parameters"


@dataclass(frozen=True)
class Refits:
    """What the refit did to every consumer's weight, and the weights as they were before.

    `biases` names, by weight, the biases that changed or are new; before, new ones are zero. `tuned` names what was
    trained, `reduced` the weights that have a lower rank now.
    """

    by_weight: Mapping[str, Refitted]
    skipped: Mapping[str, str]
    before: Weights
    biases: Mapping[str, str] = field(default_factory=dict)
    tuned: tuple[str, ...] = ()
    reduced: frozenset[str] = frozenset()

    @property
    def changed(self) -> set[str]:
        """The names of all parameters with new values."""
        return {*self.by_weight, *self.biases.values(), *self.tuned}


#: Facts about the axes and layers of one graph, which do not hold for another.
OF_ONE_GRAPH = (
    Dependencies,
    Eligible,
    Statistics,
    FullMoments,
    ProducerMoments,
    GradientSums,
    ParameterGradients,
    OutputGradients,
    FactorGradients,
    Scores,
    Shares,
)
