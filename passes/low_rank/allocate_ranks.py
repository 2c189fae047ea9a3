"""The pass that says at which rank every linear map becomes a product of two, such that a budget is met."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import exp, prod
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.axes.groups import Dependencies
from graphprune.axes.rule import Consumer
from graphprune.axes.rule_helpers import size_hint
from graphprune.errors import PlanError
from graphprune.ir.program import Program, Rewritten
from graphprune.ir.weights import narrow
from graphprune.passes.calibration.calibrate import sweep
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.budget import UNITS, Budget
from graphprune.planning.facts import Eligible
from graphprune.planning.interfaces import Evidence
from graphprune.planning.plan import Plan
from graphprune.solvers.factorable import factorable
from graphprune.solvers.normal_equations import CAUTIOUS_DAMPINGS, damped_cholesky
from graphprune.solvers.pivoted_factors import factor_parameters, rank_for_density
from graphprune.statistics.collector import Calibration, Collector
from graphprune.statistics.moments import FactorGradients, GradientSums

BUDGETS = ("parameters", "macs")
WORTH = 0.9  # of the full rank; a square matrix still holds 99 % of its numbers there
#: What ranks are chosen by, and the facts that this takes.
WAYS: dict[str, tuple[type, ...]] = {
    "density": (),
    "error": (Calibration,),
    "growth": (Calibration, GradientSums, FactorGradients),
}


@PASSES.register("allocate-ranks")
@dataclass(frozen=True)
class AllocateRanks(Pass):
    """Give linear maps ranks at which they hold fewer numbers, such that `sparsity` of all parameters of the program
    goes, or of a `budget` in ``macs``; or `ratio` of what the maps hold. What an earlier cut removed counts, too.

    `by` ``density`` all maps hold equal shares of their numbers. By ``error``, which wants calibration inputs, the sum
    of their errors is lowest: that of a map is what its whitened singular values leave out (see `low_rank.reduced`),
    relative to what it makes of the inputs. By ``growth``, which wants gradients at the outputs of all ``maps`` too,
    the growth of the loss is lowest, ``1/2 tr(G dW S dW^T)`` with the shrunk moments of both (see the score ``k-obs``).
    Ranks are multiples of `align`. `protect` holds globs of parameters that stay as they are; weights that several maps
    share, or whose outputs are those of the model, stay too.
    """

    name: ClassVar[str] = "allocate-ranks"
    reads: ClassVar[tuple[type, ...]] = (Plan, Rewritten)
    makes: ClassVar[tuple[type, ...]] = (Plan,)
    one_of: ClassVar[tuple[str, ...]] = ("sparsity", "ratio")
    sparsity: float | None = None
    ratio: float | None = None
    align: int = 1
    budget: str = "parameters"
    protect: tuple[str, ...] = ()
    by: str = "density"

    @property
    def needs(self) -> tuple[type, ...]:
        """The linear layers, and what their errors are measured with."""
        return (Dependencies, Eligible, *WAYS.get(self.by, ()))

    def check(self) -> None:
        """Refuse impossible shares, budgets and ways to choose ranks.

        Raises:
            PlanError: if not just one share is given, it is impossible, ranks do not change such a budget, or cannot be
                chosen so.
        """
        if self.by not in WAYS:
            raise PlanError(f"ranks are chosen by {' or '.join(WAYS)}, not {self.by!r}")
        given = [share for share in (self.sparsity, self.ratio) if share is not None]
        if len(given) != 1 or not isinstance(given[0], (int, float)) or not 0 < given[0] < 1:
            raise PlanError("give either sparsity (a share of the whole) or ratio (one of every map), between 0 and 1")
        if self.budget not in BUDGETS:
            raise PlanError(f"low rank saves {' or '.join(BUDGETS)}, not {self.budget!r}")
        if not isinstance(self.align, int) or self.align < 1:
            raise PlanError(f"align must be a positive whole number, got {self.align}")

    def preflight(self, program: Program) -> Program:
        """The same program, if the destination can hold factors.

        Raises:
            PlanError: if it cannot.
        """
        destination = program.fact(Eligible).destination.name
        if destination != "free":
            raise PlanError(
                f"destination {destination} cannot hold factors of a low rank: no class of transformers has such "
                "layers; use destination free"
            )
        return program

    def run(self, program: Program) -> Program:
        """The program with a plan, which holds what an earlier one says of widths, too.

        Raises:
            PlanError: if the destination cannot hold factors, or the target is out of reach.
        """
        self.preflight(program)
        found, _ = factorable(program, program.fact(Dependencies), self.protect)
        if not found:
            raise PlanError("no linear map of the model can become factors of a low rank; nothing could be saved")
        maps = _Maps.of(program, found, self.budget, self.align)
        if self.by == "density" and self.ratio is not None:
            ranks = maps.at(1 - self.ratio)
        else:
            target = self._target(program, maps)
            if self.by == "density":
                ranks = maps.meeting(target)
            else:
                ranks = maps.erring(target, ranked_errors(program, found, self.by == "growth"))
        earlier = program.facts.get(Plan)
        plan = earlier or Plan(program.fingerprint(), {}, {}, {"destination": program.fact(Eligible).destination.name})
        return program.with_facts(replace(plan, ranks=maps.lower(ranks)))

    def _target(self, program: Program, maps: "_Maps") -> int:
        """How much is to go."""
        if self.ratio is not None:
            return round(self.ratio * maps.total)
        assert self.sparsity is not None
        total, gone = _total(program, self.budget), 0.0
        if Rewritten in program.facts:
            total, left = _total(program.fact(Rewritten).original, self.budget), total
            gone = total - left
        target, most = round(self.sparsity * total - gone), round(maps.saved(maps.at(0.0)))
        if target <= 0:
            raise PlanError(
                f"the cut removed {gone / total:.1%}, no less than is to go in all; nothing is left for ranks"
            )
        if target > most:
            raise PlanError(
                f"the target is to remove {target:,} {UNITS[self.budget]} ({self.sparsity:.1%}), but at rank "
                f"{self.align} the linear maps save no more than {most:,} ({most / total:.1%}); ask for less, protect "
                "less, or lower the alignment"
            )
        return target


def _total(program: Program, unit: str) -> float:
    """All that a program holds or computes."""
    return Budget(program.fact(Dependencies), [], 0, program.parameters, unit).total


@dataclass(frozen=True)
class _Maps:
    """The shapes of weights, what each of their numbers costs in some unit, and the step of ranks."""

    shapes: Mapping[str, tuple[int, int]]
    prices: Mapping[str, float]
    step: int

    @classmethod
    def of(cls, program: Program, found: Collection[Consumer], unit: str, step: int) -> "_Maps":
        nodes = {node.name: node for node in program.graph.nodes}
        shapes, prices = {}, {}
        for consumer in found:
            shapes[consumer.weight] = shape_of(program, consumer)
            made = prod(size_hint(length) for length in nodes[consumer.node].meta["val"].shape)
            prices[consumer.weight] = 1.0 if unit == "parameters" else made / shapes[consumer.weight][0]
        return cls(shapes, prices, step)

    def at(self, density: float) -> dict[str, int]:
        """The ranks at which every map holds at most that share of its numbers."""
        return {name: rank_for_density(*shape, density, self.step) for name, shape in self.shapes.items()}

    @property
    def total(self) -> float:
        """What the maps hold at full ranks."""
        return sum(self.prices[name] * m * n for name, (m, n) in self.shapes.items())

    def saved(self, ranks: Mapping[str, int]) -> float:
        """What these ranks save."""
        return sum(self._saved(name, rank) for name, rank in ranks.items())

    def lower(self, ranks: Mapping[str, int]) -> dict[str, int]:
        """The ranks of those maps whose rank is not the full one."""
        return {name: rank for name, rank in ranks.items() if rank < min(self.shapes[name])}

    def meeting(self, target: int) -> dict[str, int]:
        """The ranks at the greatest density that saves enough; then some are raised as long as that comes nearer."""
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if self.saved(self.at(middle)) >= target else (low, middle)
        ranks = self.at(low)
        saved, above = self.saved(ranks), self.at(high + 1e-9)
        for name in ranks:
            less = saved - self._saved(name, ranks[name]) + self._saved(name, above[name])
            if abs(less - target) < abs(saved - target):
                ranks[name], saved = above[name], less
        return ranks

    def erring(self, target: int, errors: Mapping[str, Tensor]) -> dict[str, int]:
        """The ranks that save enough at the lowest sum of errors; `errors` has for every map those of all ranks.

        They are the best for some price of a parameter, which is searched for.
        """
        choices = {name: self._choices(name) for name in self.shapes}
        low, high = -40.0, 5.0
        for _ in range(60):
            middle = (low + high) / 2
            ranks = {name: self._best(name, choices[name], errors[name], exp(middle)) for name in choices}
            low, high = (low, middle) if self.saved(ranks) >= target else (middle, high)
        ranks = {name: self._best(name, choices[name], errors[name], exp(high)) for name in choices}
        return self._filled(ranks, choices, target)

    def _filled(self, ranks: Mapping[str, int], choices: Mapping[str, Tensor], target: int) -> dict[str, int]:
        """Those ranks, raised one map after the other as far as enough is still saved."""
        filled = dict(ranks)
        for name, rank in ranks.items():
            spare = self.saved(filled) - target
            within = [c for c in choices[name].tolist() if self._saved(name, rank) - self._saved(name, c) <= spare]
            filled[name] = max([rank, *within])
        return filled

    def _choices(self, name: str) -> Tensor:
        """The ranks that a map may have, the full one last; those near it save too little for two products."""
        most = min(self.shapes[name])
        return torch.tensor([*range(self.step, int(WORTH * most) + 1, self.step), most])

    def _best(self, name: str, choices: Tensor, errors: Tensor, price: float) -> int:
        """The rank with the lowest error, where what it holds has a price."""
        m, n = self.shapes[name]
        held = self.prices[name] * choices * (m + n - choices)
        return int(choices[(errors[choices] + price * held / self.total).argmin()])

    def _saved(self, name: str, rank: int) -> float:
        m, n = self.shapes[name]
        return self.prices[name] * (m * n - factor_parameters(m, n, rank))


def ranked_errors(program: Program, found: Collection[Consumer], growth: bool = False) -> dict[str, Tensor]:
    """For every map the squared error at all ranks, relative to what it makes of calibration inputs; or the `growth` of
    the loss, relative to that without any of the maps."""
    collector = Collector(list(found))
    sweep(program, program.fact(Calibration), collector)
    tails = {c.weight: _tail(program, c, collector.moments[c.node].gram, growth) for c in found}
    whole = torch.stack([tail[0] for tail in tails.values()]).sum()
    return {name: tail / (whole if growth else tail[0]).clamp(min=1e-300) for name, tail in tails.items()}


def _tail(program: Program, consumer: Consumer, second: Tensor, growth: bool) -> Tensor:
    """What is lost of a map, given the second moments of its inputs, at each rank from none to the full one."""
    weight = consumer.matrix(program.weights[consumer.weight]).double()
    inputs, outputs = CAUTIOUS_DAMPINGS if growth else (0.0, 0.0)
    matrix = weight @ damped_cholesky(second, inputs * float(second.diagonal().mean()))
    if growth:
        sensitivity = _sensitivity(program, consumer)
        matrix = damped_cholesky(sensitivity, outputs * float(sensitivity.diagonal().mean())).T @ matrix
    m, n = matrix.shape
    energy = torch.linalg.eigvalsh(matrix @ matrix.T if m <= n else matrix.T @ matrix).clamp(min=0)
    return torch.cat([energy.new_zeros(1), energy.cumsum(0)]).flip(0)


def _sensitivity(program: Program, consumer: Consumer) -> Tensor:
    """The second moments of the gradients at those outputs of a map that a cut left."""
    gathered = program.fact(GradientSums)
    found = Evidence(program, program.fact(Dependencies), None, gradients=gathered).sensitivity(consumer)
    cut = program.facts.get(Rewritten)
    kept = cut.keep.get(consumer.weight, {}).get(1 - consumer.dim) if cut else None
    return found if kept is None else narrow(narrow(found, 0, kept), 1, kept)


def shape_of(program: Program, consumer: Consumer) -> tuple[int, int]:
    """The outputs and inputs of a linear map."""
    first, second = program.shapes()[consumer.weight]
    return (first, second) if consumer.dim == 1 else (second, first)
