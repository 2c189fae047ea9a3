"""The pass that says which share of every group is kept."""

from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.axes.groups import Dependencies
from graphprune.errors import PlanError
from graphprune.ir.program import Dropped, Program, Rotatable
from graphprune.passes.allocation import ALLOCATIONS
from graphprune.passes.analysis.find_groups import analyze
from graphprune.passes.selection.select import knobs
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.budget import Budget, require_unit
from graphprune.planning.facts import Eligible, Scores, Shares
from graphprune.planning.interfaces import Evidence
from graphprune.planning.sensitivity_table import Sensitivities
from graphprune.statistics.moments import Statistics


@PASSES.register("allocate")
@dataclass(frozen=True)
class Allocate(Pass):
    """Divide what is to go: `sparsity` of all parameters of the model, `by` a registered method; or simply `ratio` of
    every group. What went with whole blocks before counts as gone. Both lie strictly between 0 and 1. A `budget` may be
    in ``macs``, the multiply-accumulates for the example inputs, ``kv_cache``, the bytes that a decoder keeps a token,
    or ``latency`` (see `MeasureLatency`), instead of ``parameters``.

    Allocation ``sensitivity`` takes what `measure-sensitivity` has measured, or a `table` that was saved, instead of
    trying groups itself; `refitted`: the losses after a refit, where there was one."""

    name: ClassVar[str] = "allocate"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible, Scores)
    makes: ClassVar[tuple[type, ...]] = (Shares,)
    memory_bounded: ClassVar[bool] = True
    by: str = "uniform"
    sparsity: float | None = None
    ratio: float | None = None
    seed: int = 0
    budget: str = "parameters"
    table: str = ""
    refitted: bool = True

    def check(self) -> None:
        """Refuse shares that are none.

        Raises:
            PlanError: if the share asked for is not between 0 and 1, or there is a table for a method that reads none.
        """
        self._asked()
        require_unit(self.budget)
        if self.table and (self.sparsity is None or not ALLOCATIONS[self.by].reads_sensitivities):
            raise PlanError("a table of sensitivities is for by=sensitivity, with a sparsity and not a ratio")

    def run(self, program: Program) -> Program:
        """The program with shares.

        Raises:
            PlanError: if the share asked for cannot be reached, or the sensitivities are not those of its groups.
            LoadError: if the table cannot be read.
        """
        asked = self._asked()
        eligible = program.fact(Eligible)
        if self.sparsity is None:
            return program.with_facts(Shares({g.name: 1 - asked for g in eligible.groups}, None))
        dependencies = program.fact(Dependencies)
        budget = aimed(Budget(dependencies, knobs(eligible, 1), 0, program.parameters, self.budget), asked, program)
        evidence = Evidence(self._informed(program), dependencies, program.facts.get(Statistics), self.seed)
        shares = ALLOCATIONS[self.by].shares(budget, program.fact(Scores).by_group, evidence)
        return program.with_facts(Shares(shares, budget.target, self.budget))

    def _informed(self, program: Program) -> Program:
        """The program with the sensitivities that are to be used, if there are any."""
        known = Sensitivities.load(self.table) if self.table else program.facts.get(Sensitivities)
        return program.with_facts(known if self.refitted else known.unrefitted) if known else program

    def _asked(self) -> float:
        given = [value for value in (self.sparsity, self.ratio) if value is not None]
        if len(given) != 1:
            raise PlanError("give either sparsity (a share of all parameters) or ratio (a share of every free group)")
        if not isinstance(given[0], (int, float)) or not 0 < given[0] < 1:
            name = "sparsity" if self.sparsity is not None else "ratio"
            raise PlanError(f"{name} must lie between 0 and 1 (0.2 removes 20 %), got {given[0]}")
        return given[0]


def aimed(budget: Budget, share: float, program: Program) -> Budget:
    """The budget with a target: a share of the model before blocks were dropped, or maps added for rotations."""
    total = budget.total
    for before in (program.facts[kind].original for kind in (Dropped, Rotatable) if kind in program.facts):
        total = replace(budget, dependencies=analyze(before), parameters=before.parameters).total
    return replace(budget, target=max(budget.total - round((1 - share) * total), 0))
