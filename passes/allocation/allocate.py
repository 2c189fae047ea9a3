"""The pass that divides a reduction among groups."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from graphprune.axes.groups import Dependencies
from graphprune.errors import PlanError
from graphprune.ir.program import Dropped, Program, Rotatable
from graphprune.passes.allocation import ALLOCATIONS
from graphprune.passes.allocation.ratios import named_ratios, parsed
from graphprune.passes.selection.select import knobs
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.budget import UNITS, Budget, require_unit
from graphprune.planning.facts import Eligible, Scores, Shares
from graphprune.planning.interfaces import Allocation, Evidence
from graphprune.planning.sensitivity_table import Sensitivities
from graphprune.solvers.factorable import factorable, part_of_widths
from graphprune.solvers.row_groups import EmbeddingGroups
from graphprune.statistics.collector import Calibration


@PASSES.register("allocate")
@dataclass(frozen=True)
class Allocate(Pass):
    """Divide a reduction among groups `by` a registered method: `sparsity` of all parameters of the model, including
    those that earlier passes removed; or simply `ratio` of every group. Both lie strictly between 0 and 1. A ratio may
    also be shares by name, as in ``layer3.*=0.3,*=0.5`` (see `named_ratios`). Widths and indices that `analyze` was
    given count towards the sparsity, and so do embedding tables whose rows were grouped. With `part`, the pass removes
    this share of the reduction, and later passes the rest. Where they lower ranks, the share of layers that can have
    no factors, such as convolutions and experts, is removed here as a whole. The `budget` may be ``macs``, the
    multiply-accumulates for the example inputs, ``kv_cache``, the bytes that a decoder caches per token, or ``latency``
    (see `MeasureLatency`), instead of ``parameters``.

    Allocation ``sensitivity`` reads the result of `measure-sensitivity`, or a saved `table`, instead of running trials;
    with `refitted`, it takes the losses after a refit, where there are such."""

    name: ClassVar[str] = "allocate"
    makes: ClassVar[tuple[type, ...]] = (Shares,)
    one_of: ClassVar[tuple[str, ...]] = ("sparsity", "ratio")
    by: str = "uniform"
    sparsity: float | None = None
    ratio: float | str | None = None
    seed: int = 0
    budget: str = "parameters"
    part: float = 1.0
    table: str = ""
    refitted: bool = True
    factors: tuple[str, ...] | None = field(default=None, repr=False)  # what a later allocate-ranks protects

    @property
    def needs(self) -> tuple[type, ...]:
        """The scores of the groups, and calibration inputs if the method tries plans on them."""
        tries = self._method.needs_calibration and not self._method.reads_sensitivities and self.ratio is None
        return (Dependencies, Eligible, Scores, *((Calibration,) if tries else ()))

    @property
    def reads(self) -> tuple[type, ...]:
        """Earlier changes of the model, and measured sensitivities or the inputs to measure them on."""
        measured = (Sensitivities, Calibration) if self._method.reads_sensitivities and not self.table else ()
        return (Dropped, Rotatable, EmbeddingGroups, *measured, *self._method.reads)

    @property
    def memory_bounded(self) -> bool:
        """Whether the method does without gradients; a plan is tried segment by segment."""
        return not self._method.gradients

    @property
    def resources(self) -> tuple[str, ...]:
        """Gradients, if the method learns from them."""
        return ("gradients",) if self._method.gradients else ()

    @property
    def _method(self) -> Allocation:
        return ALLOCATIONS[self.by]

    def before(self, later: Sequence[Pass]) -> Pass:
        """The pass that knows whether low ranks remove the rest."""
        ranks = next((step for step in later if step.name == "allocate-ranks"), None)
        return self if ranks is None else replace(self, factors=tuple(getattr(ranks, "protect", ())))

    def check(self) -> None:
        """Refuse impossible shares, and methods that do not exist.

        Raises:
            PlanError: if the share is not between 0 and 1, or the method does not read a given table.
            RegistryError: if there is no such method.
        """
        if isinstance(self.ratio, str) and self.sparsity is None:
            parsed(self.ratio)
        else:
            self._share()
        require_unit(self.budget)
        if self.table and (self.sparsity is None or not self._method.reads_sensitivities):
            raise PlanError("a table of sensitivities is for by=sensitivity, with a sparsity and not a ratio")

    def preflight(self, program: Program) -> Program:
        """The program with the target that `select` must be able to reach; latencies may be unknown yet.

        Raises:
            PlanError: if requested widths already remove more, or a name of the ratio matches no group.
        """
        self._retained(program)
        unknown = self.budget not in ("parameters", *program.fact(Dependencies).terms)
        if self.sparsity is None or unknown:
            return program.with_facts(Shares({}, None))
        return program.with_facts(Shares({}, self._budget(program).target, self.budget))

    def run(self, program: Program) -> Program:
        """The program with the shares of its groups.

        Raises:
            PlanError: if the share cannot be reached, or the sensitivities lack a group.
            LoadError: if the table cannot be read.
        """
        if self.sparsity is None:
            return program.with_facts(Shares(self._retained(program), None))
        evidence = Evidence(self._informed(program), program.fact(Dependencies), None, self.seed)

        def shares_of(budget: Budget) -> Mapping[str, float]:
            return self._method.shares(budget, program.fact(Scores).by_group, evidence)

        budget = self._budget(program, self._part_of_widths(program, shares_of))
        shares = shares_of(budget)
        return program.with_facts(Shares(shares, budget.target, self.budget))

    def _retained(self, program: Program) -> dict[str, float]:
        """The shares that a ratio retains; empty for a sparsity."""
        if isinstance(self.ratio, str):
            return {name: 1 - share * self.part for name, share in named_ratios(program, self.ratio).items()}
        groups = program.fact(Eligible).groups if self.ratio is not None else ()
        return {group.name: 1 - self._share() for group in groups}

    def _part_of_widths(self, program: Program, shares_of: Callable[[Budget], Mapping[str, float]]) -> float | None:
        """The share of the reduction that is removed here, where lower ranks remove the rest; None if it is known."""
        if self.factors is None or self.part == 1:
            return None
        whole = self._budget(program, 1.0)
        if whole.target > whole.most:
            return None
        return part_of_widths(program, self.part, self.factors, whole.knobs, shares_of(whole))

    def _budget(self, program: Program, share: float | None = None) -> Budget:
        """The budget with a target of a `share` of the reduction, but of no less than what requested widths remove.

        By default, the share is `part`, or all of it where later ranks have no layer to lower.

        Raises:
            PlanError: if these remove more than the whole sparsity.
        """
        eligible = program.fact(Eligible)
        budget = Budget.of(program, knobs(eligible, 1), 0, self.budget, eligible.requested)
        assert self.sparsity is not None
        requested, whole = round(budget.removed({})), with_target(budget, self.sparsity, program).target
        if eligible.requested and requested > whole:
            raise PlanError(
                f"the requested widths and indices remove {requested:,} {UNITS[self.budget]} "
                f"({requested / max(budget.total, 1):.1%}), more than the {whole:,} of the sparsity {self.sparsity:g}; "
                "raise the sparsity, or omit it"
            )
        if share is None:
            ranked = self.factors is None or factorable(program, program.fact(Dependencies), self.factors)[0]
            share = self.part if ranked else 1.0
        part = with_target(budget, self.sparsity * share, program)
        tables = program.facts.get(EmbeddingGroups)
        by_tables = round(tables.saved * share) if tables and self.budget == "parameters" else 0
        return replace(part, target=max(part.target - by_tables, requested))

    def _informed(self, program: Program) -> Program:
        """The program with the sensitivities that the method reads, if there are any."""
        if not self._method.reads_sensitivities:
            return program
        known = Sensitivities.load(self.table) if self.table else program.facts.get(Sensitivities)
        return program.with_facts(known if self.refitted else known.unrefitted) if known else program

    def _share(self) -> float:
        """The share that this pass removes."""
        shares = [value for value in (self.sparsity, self.ratio) if value is not None]
        if len(shares) != 1:
            raise PlanError("give either sparsity (a share of all parameters) or ratio (a share of every free group)")
        if not isinstance(shares[0], (int, float)) or not 0 < shares[0] < 1:
            name = "sparsity" if self.sparsity is not None else "ratio"
            raise PlanError(f"{name} must lie between 0 and 1 (0.2 is 20 %), got {shares[0]}")
        if not 0 < self.part <= 1:
            raise PlanError(f"part is a share of the reduction above 0 and at most 1, got {self.part}")
        return shares[0] * self.part


def with_target(budget: Budget, share: float, program: Program) -> Budget:
    """The budget with a target: a share of the model before blocks were dropped, or layers added for rotations."""
    total = budget.total
    for before in (program.facts[kind].original for kind in (Dropped, Rotatable) if kind in program.facts):
        total = Budget.of(before, (), 0, budget.unit).total
    return replace(budget, target=max(budget.total - round((1 - share) * total), 0))
