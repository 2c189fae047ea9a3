"""The pass that drops whole blocks, or parts of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch

from graphprune.axes.groups import Dependencies
from graphprune.axes.residual_blocks import Importance, Unit, drop_units, droppable_units, zero_residuals
from graphprune.errors import PlanError, choices
from graphprune.execution.equivalence import verify_cut
from graphprune.execution.output_comparison import Verification
from graphprune.huggingface.list_entries import renumbered
from graphprune.ir.program import Dropped, Program, copy_graph
from graphprune.ir.weights import Renamed
from graphprune.passes.depth import IMPORTANCES
from graphprune.pipeline import PASSES, Pass, Timings
from graphprune.planning.destination import Destination
from graphprune.planning.facts import OF_ONE_GRAPH, Eligible
from graphprune.planning.plan import Plan
from graphprune.statistics.collector import Calibration
from graphprune.writeback.module import write_back_dropped


@PASSES.register("drop-blocks")
@dataclass(frozen=True)
class Drop(Pass):
    """Drop the least important blocks, `by` a registered importance: `count` blocks, or blocks with about `sparsity` of
    all parameters. `ratio` is another name of sparsity; with `part`, the pass removes this share of it, and later
    passes the rest. Blocks are entries of lists of modules; with `branches`, parts of them such as attention alone,
    which only destination free can express. With `least` 0 no block is dropped where that is nearer to the sparsity.
    The only `budget` is ``parameters``. `blocks` are the very blocks to drop, by number in their list or by name; with
    them a sparsity is only the most that they may remove."""

    name: ClassVar[str] = "drop-blocks"
    makes: ClassVar[tuple[type, ...]] = (Dropped, Plan, Verification)
    invalidates: ClassVar[tuple[type, ...]] = OF_ONE_GRAPH
    one_of: ClassVar[tuple[str, ...]] = ("sparsity", "ratio", "count")
    by: str = "shortgpt"
    sparsity: float | None = None
    count: int | None = None
    branches: bool = False
    least: int = 1
    ratio: float | None = None
    part: float = 1.0
    budget: str = "parameters"
    blocks: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[type, ...]:
        """The groups, and calibration inputs if blocks are to be chosen."""
        return (Dependencies, Eligible) if self.blocks else (Dependencies, Eligible, Calibration)

    @property
    def reads(self) -> tuple[type, ...]:
        """Calibration inputs, which remain those of the model."""
        return (Calibration,)

    @property
    def _share(self) -> float | None:
        """The share of all parameters that this pass removes."""
        share = self.sparsity if self.sparsity is not None else self.ratio
        return None if share is None else share * self.part

    def check(self) -> None:
        """Refuse impossible options, and importances that do not exist.

        Raises:
            PlanError: if not exactly one of count, sparsity and ratio is given, it is impossible, or the budget is not
                that of parameters.
            RegistryError: if there is no such importance.
        """
        IMPORTANCES[self.by]
        shares = sum(option is not None for option in (self.sparsity, self.ratio, self.count))
        if self.blocks and (shares > (self.sparsity is not None) or self.branches):
            raise PlanError("blocks that are named are dropped; give no count, ratio or branches with them")
        if isinstance(self.ratio, str):
            raise PlanError(f"a ratio by name is for groups, and blocks are dropped by sparsity; got {self.ratio}")
        if shares != 1 and not self.blocks:
            raise PlanError("give either count (of blocks to drop) or sparsity (a share of all parameters)")
        if self._share is not None and not 0 < self._share < 1:
            raise PlanError(f"sparsity must lie between 0 and 1 (0.2 is 20 %), got {self._share}")
        if self.budget != "parameters":
            raise PlanError(f"blocks are dropped until enough parameters are removed, not {self.budget}")
        if self.count is not None and (not isinstance(self.count, int) or self.count < 1):
            raise PlanError(f"count must be a positive whole number, got {self.count}")

    def run(self, program: Program) -> Program:
        """The program without the blocks, verified.

        Raises:
            PlanError: if there are too few blocks.
            VerificationError: if the numbers disagree.
        """
        candidates = self._candidates(program)
        chosen = self._named(program, candidates) if self.blocks else self._chosen(program, candidates)
        if not chosen:
            return program
        small = drop(program, [unit.name for unit in chosen])
        facts = [program.facts[kind] for kind in (Calibration, Timings) if kind in program.facts]
        made_by = {
            "importance": "given" if self.blocks else self.by,
            "destination": program.fact(Eligible).destination.name,
        }
        return small.with_facts(*facts, replace(small.fact(Plan), made_by=made_by))

    def _candidates(self, program: Program) -> list[Unit]:
        """The units that may be dropped for the destination."""
        destination = program.fact(Eligible).destination
        if self.branches:
            if destination.name != "free":
                raise PlanError(
                    f"branches cannot be dropped for destination {destination.name}: a layer without one of its parts "
                    "is no layer of a class of transformers; drop whole blocks, or use destination free"
                )
            return _innermost(droppable_units(program))
        blocks = [unit for unit in droppable_units(program) if unit.whole]
        if blocks and all(destination.fewer([block.name]) for block in blocks):
            fault = destination.fewer([blocks[0].name])
            raise PlanError(f"destination {destination.name} cannot hold fewer blocks: {fault}")
        return blocks

    def _named(self, program: Program, candidates: Sequence[Unit]) -> list[Unit]:
        """The units of these numbers or names.

        Raises:
            PlanError: if there is no such unit, a number stands for several, the destination cannot lose them together,
                no block is retained, or they have more parameters than the sparsity allows.
        """
        units = list(dict.fromkeys(_unit_of(block, candidates) for block in self.blocks))
        if len(units) == len(candidates):
            raise PlanError(f"all {len(units)} blocks that can be dropped are named; at least one must be retained")
        destination, removed = program.fact(Eligible).destination, _parameters_of(program, units)
        if fault := destination.fewer([unit.name for unit in units]):
            raise PlanError(f"destination {destination.name} cannot lose {', '.join(u.name for u in units)}: {fault}")
        if self.sparsity is not None and removed > round(self.sparsity * program.count()):
            raise PlanError(
                f"the named blocks hold {removed / program.count():.1%} of all parameters, more than the sparsity "
                f"{self.sparsity:g}; raise the sparsity, or omit it"
            )
        return units

    def _chosen(self, program: Program, candidates: Sequence[Unit]) -> list[Unit]:
        """The units with the lowest importance, as many as required; at least one is retained."""
        method, required, parts = IMPORTANCES[self.by], self.count or 1, "branches" if self.branches else "blocks"
        most = len(candidates) - 1
        if most < required and self.least:
            raise PlanError(
                f"{required} of {len(candidates)} {parts} cannot be dropped: at least one must be retained, and only "
                "residual branches count"
            )
        whole = program.count() + program.constants
        target = whole if self._share is None else round(self._share * whole)

        def error(units: Sequence[Unit]) -> int:
            return abs(_parameters_of(program, units) - target)

        chosen: list[Unit] = []
        ranking: list[Unit] = []
        while len(chosen) < (self.count or most):
            if method.stepwise or not chosen:
                ranking = _ranked(method, program, candidates, chosen)
            following = _following(program.fact(Eligible).destination, chosen, ranking)
            if following is None or (self.count is None and error(following) > error(chosen)):
                break
            chosen = following
        if len(chosen) < (self.count or 0):
            raise PlanError(
                f"only {len(chosen)} of the {parts} can be dropped together for this destination; ask for less"
            )
        if not chosen and self.least:
            raise PlanError(f"none of the {parts} is as small as {target:,} parameters; ask for more, or give count")
        return chosen


def _unit_of(block: str, units: Sequence[Unit]) -> Unit:
    """The unit of this name, or of this number in its list.

    Raises:
        PlanError: if there is none, or several have the number.
    """
    named = [unit for unit in units if block in (unit.name, unit.name.rpartition(".")[2])]
    if len(named) == 1:
        return named[0]
    names = [unit.name for unit in units]
    if named:
        raise PlanError(f"block {block} is {' or '.join(unit.name for unit in named)}; name one of them")
    raise PlanError(f"there is no block {block} that can be dropped; {choices(block, names) if names else 'none can'}")


def _ranked(method: Importance, program: Program, candidates: Sequence[Unit], dropped: Sequence[Unit]) -> list[Unit]:
    """The remaining units, the least important first."""
    remaining = [unit for unit in candidates if unit not in dropped]
    values = method.importance(program, remaining, lambda unit: drop_units(program, [*dropped, unit]))
    return [remaining[i] for i in sorted(range(len(remaining)), key=values.__getitem__)]


def _following(destination: Destination, chosen: Sequence[Unit], ranking: list[Unit]) -> list[Unit] | None:
    """The chosen units with the next one that the destination can lose, too, which leaves the ranking."""
    for unit in ranking:
        if destination.fewer([block.name for block in (*chosen, unit)]) is None:
            ranking.remove(unit)
            return [*chosen, unit]
    return None


def _innermost(units: Sequence[Unit]) -> list[Unit]:
    """Branches, and the blocks that have a single branch."""
    blocks = {unit.name.rpartition(":")[0] for unit in units if not unit.whole}
    return [unit for unit in units if not unit.whole or unit.name not in blocks]


def _parameters_of(program: Program, units: Sequence[Unit]) -> int:
    """The number of parameters of these units."""
    names = frozenset[str]().union(*(unit.parameters for unit in units)) & program.parameters
    shapes = program.shapes()
    return sum(torch.Size(shapes[name]).numel() for name in names)


def drop(program: Program, names: Sequence[str]) -> Program:
    """The program without the units of these names, verified; entries of lists are renumbered.

    Raises:
        PlanError: if there is no such unit.
        VerificationError: if the numbers disagree.
    """
    known = {unit.name: unit for unit in droppable_units(program)}
    if missing := [name for name in names if name not in known]:
        raise PlanError(
            f"the model has no block {missing[0]!r} that can be dropped; it has {', '.join(known) or 'none'}"
        )
    chosen = sorted((known[name] for name in names), key=list(known.values()).index)
    reduced = drop_units(program, chosen)
    verification = verify_cut(zero_residuals(program, chosen), reduced, {})
    whole = [unit.name for unit in chosen if unit.whole]
    small = _renumbered(reduced, whole)
    source = small.source and replace(small.source, dropped=(*small.source.dropped, *whole))
    follow = partial(write_back_dropped, entries=tuple(whole)) if len(whole) == len(chosen) else None
    blocks = tuple(unit.name for unit in chosen)
    fact = Dropped(program, blocks, follow)
    plan = Plan(small.fingerprint(), {}, {}, {}, blocks)
    traced = small.traced and replace(small.traced, dropped=(*small.traced.dropped, *whole))
    return replace(small, source=source, traced=traced, facts={}).with_facts(fact, plan, verification)


def _renumbered(program: Program, entries: Sequence[str]) -> Program:
    """The program with the names that its parameters have in lists without gaps."""

    def new(name: str) -> str:
        return renumbered(name, entries) or name

    graph = copy_graph(program.graph)
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target) not in program.submodules:
            node.target = new(program.name(str(node.target)))  # an alias may have been removed
        stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
        node.meta = {**node.meta, "nn_module_stack": {key: (new(path), kind) for key, (path, kind) in stack.items()}}
    names = {new(name): name for name in program.names(program.graph.nodes) if name in program.weights}
    aliases = {renumbered(alias, entries): name for alias, name in program.ties.items()}
    ties = {alias: new(name) for alias, name in aliases.items() if alias is not None}
    parameters = frozenset(map(new, program.parameters))
    return replace(program, graph=graph, weights=Renamed(program.weights, names), ties=ties, parameters=parameters)
