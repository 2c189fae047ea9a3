"""Interfaces of scores, allocations and reconstructions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
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
from graphprune.statistics.routing import Routing


@dataclass(frozen=True)
class Evidence:
    """The data of a score: the program, its axes, and what calibration gathered (None without it).

    `statistics` are the moments of the inputs of consumers, `gradients` those of a loss; see `ScoreMethod`.
    """

    program: Program
    dependencies: Dependencies
    statistics: Statistics | None
    seed: int = 0
    gradients: GradientSums | None = None
    latest: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)  # the stack read last

    def moments(self, consumer: Consumer) -> Moments:
        """The moments of the inputs of a consumer; of all members of a stack for one that no token reached.

        Raises:
            CalibrationError: if none were gathered.
        """
        known = self.statistics.moments if self.statistics is not None else {}
        if consumer.key not in known:
            raise CalibrationError(
                f"there are no statistics at {consumer.node}; put calibrate before score, with moments for it"
            )
        if consumer.member is None or known[consumer.key].tokens:
            return known[consumer.key]
        alike = [c.key for c in self.dependencies.members if c.node == consumer.node]
        return sum((known[key] for key in alike[1:]), known[alike[0]])

    def weighted_gram(self, consumer: Consumer) -> Tensor:
        """The Gram matrix of the inputs of a consumer over all batches, in which a token counts by the energy of its
        gradients at the outputs, shape (n, n); of all members of a stack for one that no token reached.

        Raises:
            CalibrationError: if none was gathered.
        """
        self.sensitivity(consumer)
        known = self.known_gradients.input_moments
        if consumer.member is None or consumer.key in known:
            return known[consumer.key].gram.double()
        alike = [known[c.key].gram for c in self.dependencies.members if c.node == consumer.node and c.key in known]
        return torch.stack(alike).sum(0, dtype=torch.float64)

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
        """The Gram matrix of the gradients at the outputs of a consumer, divided by their number, shape (m, m).

        Raises:
            CalibrationError: if none was gathered.
        """
        if consumer.node not in self.known_gradients.output_grams:
            raise CalibrationError(
                f"there are no gradients at the outputs of {consumer.node}; gather them with of=outputs, or those of "
                "all linear layers with of=layers before the cut"
            )
        return self.known_gradients.output_grams[consumer.node].double()

    def matrix(self, consumer: Consumer) -> Tensor:
        """The weight of a consumer in double precision, shape (outputs, columns * taps)."""
        if consumer.member is None:
            return consumer.matrix(self.program.weights[consumer.weight]).double()
        if consumer.weight not in self.latest:
            self.latest.clear()
            self.latest[consumer.weight] = self.program.weights[consumer.weight]
        return consumer.matrix(self.latest[consumer.weight]).double()


class ScoreMethod(ABC):
    """A saliency of every index of a group.

    `moments` names the sums over calibration inputs that it reads: ``none``, the ``diagonal`` (squares and means), or
    the ``full`` Gram matrices; at the consumers of a group and, with `producers`, also at its producers. With
    `gradients` it reads gradients of a loss; `gradients_of` tells whether at the ``parameters``, or at the ``outputs``
    of consumers. With `runs_inputs` it runs calibration inputs itself. With `stacks`, it scores members of stacks
    of linear operators, such as experts, as it does consumers. With `routing`, it reads what a router sends to each
    expert.
    """

    moments: ClassVar[str] = "none"
    producers: ClassVar[bool] = False
    gradients: ClassVar[bool] = False
    gradients_of: ClassVar[str] = "parameters"
    runs_inputs: ClassVar[bool] = False
    stacks: ClassVar[bool] = False
    routing: ClassVar[bool] = False

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
            Routing: self.routing,
        }
        return tuple(fact for fact, needed in read.items() if needed)

    def readers(self, group: Group, dependencies: Dependencies) -> list[Consumer]:
        """The linear operators that contract a group, as far as the method can score them."""
        members = dependencies.members_of(group) if self.stacks else []
        return [*dependencies.consumers_of(group), *members]

    def applies(self, group: Group, consumers: Sequence[Consumer]) -> bool:
        """Whether the method scores this group; by default every one."""
        return True

    def scored(self, program: Program, groups: Sequence[Group]) -> tuple[Group, ...]:
        """The groups that the method scores in a program; by default those to which it applies."""
        dependencies = program.fact(Dependencies)
        return tuple(group for group in groups if self.applies(group, self.readers(group, dependencies)))

    @abstractmethod
    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """The score of every index, shape (rows, group.size); the indices with the highest scores are retained.

        There is one row, or a row for each index of the group that this one is linked to.
        """


class Allocation(ABC):
    """A method that divides a reduction among groups.

    With `needs_calibration` it tries plans on calibration data (see `Objective`). With `gradients` it learns from
    gradients, which take more memory than the forward pass. With `reads_sensitivities` it reads the fact
    `Sensitivities`, where the program has it, instead of running trials of its own. It also reads the facts in `reads`
    where the program has them.
    """

    needs_calibration: ClassVar[bool] = False
    gradients: ClassVar[bool] = False
    reads_sensitivities: ClassVar[bool] = False
    reads: ClassVar[tuple[type, ...]] = ()

    @abstractmethod
    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The share of its indices that each group retains, by name; the budget is met before widths are rounded.

        `scores` has those of every group of the budget, shape (rows, group.size).
        """


@dataclass(frozen=True)
class Refitted:
    """A refitted matrix, shape (m, retained columns), its relative damping, and squared errors of the outputs.

    `error_before` is the error without the removed columns, `error_after` that after the refit, relative to the energy
    of the outputs. `bias`, shape (m,), is added to the outputs, if there is one.
    """

    weight: Tensor
    damping: float
    error_before: float
    error_after: float
    bias: Tensor | None = None


class Reconstruction(ABC):
    """A method that refits the weight of a consumer after some of its columns are removed.

    With `adds_bias` it also adds a bias, so that the layer must have one and the destination must be able to save it.
    """

    adds_bias: ClassVar[bool] = False

    @abstractmethod
    def refit(
        self, weight: Tensor, retained: Tensor, moments: Moments, held_out: Moments | None, damping: float | None
    ) -> Refitted:
        """New values of the columns `retained` of a matrix `weight` of shape (m, n), from `moments` of its n inputs.

        A `damping` of None is chosen on `held_out` moments; without these, it is the default of the method.
        """
