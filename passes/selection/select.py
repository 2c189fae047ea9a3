"""The pass that rounds shares to widths under the budget, and selects the indices to retain."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import networkx as nx

from graphprune.axes.groups import Dependencies, Group
from graphprune.errors import PlanError
from graphprune.ir.program import Dropped, Program
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.budget import Budget, Knob
from graphprune.planning.facts import Eligible, Followable, Scores, Shares
from graphprune.planning.plan import Plan, make
from graphprune.planning.ranking import top
from graphprune.solvers.row_groups import EmbeddingGroups

NEAR = 0.005  # share of the whole within which an amount is near its target

log = logging.getLogger(__name__)


@PASSES.register("select")
@dataclass(frozen=True)
class Select(Pass):
    """Retain the indices with the highest scores, at widths such that dimensions are multiples of `align`."""

    name: ClassVar[str] = "select"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible, Scores, Shares)
    reads: ClassVar[tuple[type, ...]] = (Dropped, Followable, EmbeddingGroups)
    makes: ClassVar[tuple[type, ...]] = (Plan,)
    memory_bounded: ClassVar[bool] = True
    align: int = 1

    def check(self) -> None:
        """Refuse an impossible alignment.

        Raises:
            PlanError: if it is no positive whole number.
        """
        if not isinstance(self.align, int) or self.align < 1:
            raise PlanError(f"align must be a positive whole number, got {self.align}")

    def preflight(self, program: Program) -> Program:
        """Check that the groups can give the target of the shares at this alignment.

        Raises:
            PlanError: if they cannot, with the greatest amount that they can give.
        """
        shares = program.facts.get(Shares)
        if shares is not None and shares.target is not None:
            self._budget(program, shares.target, shares.unit).require()
        return program

    def run(self, program: Program) -> Program:
        """The program with a plan.

        Raises:
            PlanError: if the target cannot be reached with this alignment.
        """
        eligible, shares, scores = program.fact(Eligible), program.fact(Shares), program.fact(Scores)
        dependencies = program.fact(Dependencies)
        if shares.target is None:
            widths = _rounded(knobs(eligible, self.align), shares.by_group)
        else:
            widths = widths_at(self._budget(program, shares.target, shares.unit), shares.by_group)
        widths = {**widths, **eligible.requested}
        _warn_of_alignment(eligible, self.align)
        cut = {group: widths[group.name] for group in eligible.groups if widths[group.name] < group.size}
        if fault := eligible.destination.fault({group.name: width for group, width in cut.items()}):
            raise PlanError(
                f"destination {eligible.destination.name} cannot hold the chosen widths together: {fault}; "
                "protect one of the kinds, or choose another sparsity or destination"
            )
        rows = {group.name: top(scores.by_group[group.name], width) for group, width in cut.items()}
        made_by = {"score": scores.method, "align": self.align, "destination": eligible.destination.name}
        made_by |= {"requested": len(eligible.requested)} if eligible.requested else {}
        plan = make(program, dependencies, rows, **made_by)
        tables = program.facts.get(EmbeddingGroups)
        plan = replace(plan, tables=tables.sizes) if tables else plan
        known = program.facts.get(Followable)
        return program.with_facts(replace(plan, wide=known.refused) if known else plan)

    def _budget(self, program: Program, target: int, unit: str) -> Budget:
        eligible = program.fact(Eligible)
        return Budget.of(program, knobs(eligible, self.align), target, unit, eligible.requested)


def knobs(eligible: Eligible, align: int) -> list[Knob]:
    """The knobs of the eligible groups without a requested width: one per kind, or family of kinds, where widths must
    be uniform, and one for groups that are tied; else one per group."""
    by_name = {group.name: group for group in eligible.groups if group.name not in eligible.requested}
    alike: nx.Graph[Any] = nx.Graph()
    alike.add_nodes_from(by_name)
    if eligible.destination.uniform:
        family_of = {kind: family[0] for family in eligible.families for kind in family}
        for group in by_name.values():
            alike.add_edge(group.name, (family_of.get(group.kind, group.kind),))
    for tie in eligible.tied:
        nx.add_path(alike, [name for name in tie if name in by_name])
    classes = {name: i for i, names in enumerate(nx.connected_components(alike)) for name in names}
    together: dict[int, list[Group]] = {}
    for group in by_name.values():
        together.setdefault(classes[group.name], []).append(group)
    return [Knob.of(groups, align, _allowed(eligible, groups)) for groups in together.values()]


def _allowed(eligible: Eligible, groups: Sequence[Group]) -> Collection[int] | None:
    """The widths that the destination allows for all of the groups; None if it allows every width."""
    limits = [eligible.widths[kind] for kind in {group.kind for group in groups} if kind in eligible.widths]
    return set(limits[0]).intersection(*limits[1:]) if limits else None


def _warn_of_alignment(eligible: Eligible, align: int) -> None:
    """Log requested widths that are no multiples of the alignment, which they precede."""
    for group in eligible.groups:
        width = eligible.requested.get(group.name, group.size)
        if width < group.size and width * group.inner % align and not group.routed:
            log.warning("%s has the requested width %d, which is no multiple of %d", group.name, width, align)


def widths_at(budget: Budget, shares: Mapping[str, float]) -> dict[str, int]:
    """Legal widths of all groups near these shares, which remove what is nearest to the target.

    Raises:
        PlanError: if the target is more than the groups can give.
    """

    def miss(widths: Mapping[str, int]) -> float:
        return abs(budget.removed(widths) - budget.target)

    down = _fill(budget, _rounded(budget.knobs, shares), shares)
    if miss(down) <= NEAR * budget.total:
        return down
    # A coarse knob one step wider and a fine one narrower can be nearer, which single steps do not reach.
    return min(down, _fill(budget, _rounded(budget.knobs, shares, 1), shares), key=miss)


def _rounded(knobs: Sequence[Knob], shares: Mapping[str, float], more: int = 0) -> dict[str, int]:
    """The greatest legal widths of at most the exact ones, or the next wider ones."""
    sizes = ((knob, knob.floor(min(shares[g.name] for g in knob.groups) * knob.size)) for knob in knobs)
    return {group.name: knob.step(size, more) for knob, size in sizes for group in knob.groups}


def _fill(budget: Budget, widths: dict[str, int], shares: Mapping[str, float]) -> dict[str, int]:
    """Move knobs by single steps as long as the removed amount gets nearer to the target.

    First, knobs are widened in the order of their loss by rounding. Then one knob of a kind at a time is moved, that
    which remains nearest to its share.

    Raises:
        PlanError: if the target is more than the groups can give.
    """
    budget.require()
    exact = {knob: shares[knob.groups[0].name] * knob.size for knob in budget.knobs}
    removed = budget.removed(widths)

    def off(knob: Knob, at: Mapping[str, int]) -> float:
        return (at[knob.groups[0].name] - exact[knob]) / knob.size

    def moved(knob: Knob, way: int) -> tuple[dict[str, int], float] | None:
        """The widths after a step, and the amount that they remove; None if it is no nearer to the target."""
        new = _moved(knob, widths, way)
        amount = removed + budget.difference(knob, widths, new)
        return (new, amount) if abs(amount - budget.target) < abs(removed - budget.target) else None

    for knob in sorted(budget.knobs, key=lambda knob: off(knob, widths)):
        widths, removed = moved(knob, 1) or (widths, removed)
    moves = [(knob, way) for knob in _one_of_each_kind(budget.knobs) for way in (-1, 1)]
    while nearer := [(knob, step) for knob, way in moves if (step := moved(knob, way)) is not None]:
        _, (widths, removed) = min(nearer, key=lambda n: (abs(off(n[0], n[1][0])), abs(n[1][1] - budget.target)))
    return widths


def _moved(knob: Knob, widths: dict[str, int], way: int) -> dict[str, int]:
    """The widths with one knob a step wider or narrower, within its legal widths."""
    new = knob.step(widths[knob.groups[0].name], way)
    return {**widths, **{group.name: new for group in knob.groups}}


def _one_of_each_kind(knobs: Sequence[Knob]) -> list[Knob]:
    """The middle knob of each kind, where a step more or less matters least."""
    kinds: dict[str, list[Knob]] = {}
    for knob in knobs:
        kinds.setdefault(knob.groups[0].kind, []).append(knob)
    return [alike[len(alike) // 2] for alike in kinds.values()]
