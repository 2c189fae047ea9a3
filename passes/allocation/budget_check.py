"""The pass that refuses a target which lies out of reach, before any time is spent on calibration."""

from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.axes.groups import Dependencies
from graphprune.ir.program import Program
from graphprune.passes.allocation.allocate import aimed
from graphprune.passes.scores.score import in_play
from graphprune.passes.selection.select import knobs
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.budget import Budget, require_unit
from graphprune.planning.facts import Eligible


@PASSES.register("reach")
@dataclass(frozen=True)
class Reach(Pass):
    """See that the groups which the score `by` cuts can give `sparsity` of all parameters, or of another
    `budget`, at the alignment `align`."""

    name: ClassVar[str] = "reach"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible)
    makes: ClassVar[tuple[type, ...]] = ()
    memory_bounded: ClassVar[bool] = True
    by: str = "magnitude"
    sparsity: float = 0.5
    align: int = 1
    budget: str = "parameters"

    def check(self) -> None:
        """Refuse budgets that are none.

        Raises:
            PlanError: if there is no such unit.
        """
        require_unit(self.budget)

    def run(self, program: Program) -> Program:
        """The program as it is.

        Raises:
            PlanError: if the target is out of reach; it says what is the most.
        """
        eligible = replace(program.fact(Eligible), groups=in_play(program, self.by))
        movable = knobs(eligible, self.align)
        whole = Budget(program.fact(Dependencies), movable, 0, program.parameters, self.budget)
        aimed(whole, self.sparsity, program).require()
        return program
