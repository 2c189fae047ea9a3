"""The pass that refuses a refit whose biases nothing can hold, before any time is spent on calibration."""

from dataclasses import dataclass
from typing import ClassVar

from graphprune.axes.groups import Dependencies
from graphprune.errors import PlanError
from graphprune.ir.program import Program
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.passes.scores.score import in_play
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Eligible
from graphprune.solvers import new_biases


@PASSES.register("room")
@dataclass(frozen=True)
class Room(Pass):
    """See that there is room for the biases that the refit `by` adds where groups are cut that `score` judges."""

    name: ClassVar[str] = "room"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible)
    makes: ClassVar[tuple[type, ...]] = ()
    memory_bounded: ClassVar[bool] = True
    by: str = "none"
    score: str = "magnitude"

    def run(self, program: Program) -> Program:
        """The program as it is.

        Raises:
            PlanError: if a layer takes no bias, or the destination cannot say that it has one.
        """
        if not RECONSTRUCTIONS[self.by].adds_bias:
            return program
        dependencies, destination = program.fact(Dependencies), program.fact(Eligible).destination
        for consumer in dependencies.maps_of(in_play(program, self.score)):
            fault = new_biases.obstacle(program, consumer)
            if not fault and consumer.bias is None:
                fault = destination.bias_fault(new_biases.bias_name(consumer))
            if fault:
                raise PlanError(
                    f"refit {self.by} adds a bias to every layer behind a cut, and {consumer.weight} can have none: "
                    f"{fault}; use refit least-squares or mask, or another destination"
                )
        return program
