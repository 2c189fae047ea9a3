"""The pass that allocates the ranks of low-rank factors to linear layers under a budget."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import exp, prod
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.axes.groups import Dependencies
from graphprune.axes.rule import Consumer
from graphprune.axes.rule_helpers import size_hint
from graphprune.display.progress import progress
from graphprune.errors import PlanError
from graphprune.ir.program import Program, Rewritten
from graphprune.ir.weights import narrow
from graphprune.passes.calibration.calibrate import sweep
from graphprune.passes.low_rank.requirements import require_free, require_one_share
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.budget import UNITS, Budget
from graphprune.planning.facts import Eligible
from graphprune.planning.interfaces import Evidence
from graphprune.planning.plan import Plan
from graphprune.solvers.factorable import factorable
from graphprune.solvers.normal_equations import cautious_dampings, damped_cholesky
from graphprune.solvers.pivoted_factors import factor_parameters, rank_for_density
from graphprune.solvers.row_groups import EmbeddingGroups
from graphprune.statistics.collector import Calibration, Collector
from graphprune.statistics.moments import FactorGradients, GradientSums

log = logging.getLogger(__name__)
BUDGETS = ("parameters", "macs")
GREATEST = 0.9  # share of the full rank, at which a square matrix still has 99 % of its elements
#: The methods of choosing ranks, and the facts that they read.
WAYS: dict[str, tuple[type, ...]] = {
    "density": (),
    "error": (Calibration,),
    "growth": (GradientSums, FactorGradients),
}


@PASSES.register("allocate-ranks")
@dataclass(frozen=True)
class AllocateRanks(Pass):
    """Choose ranks of linear layers that remove `sparsity` of all parameters of the program, or of a `budget` in
    ``macs``; or `ratio` of the layers. The sparsity includes an earlier cut.

    `by` ``density``, all layers have the same share of their elements. By ``error``, which needs calibration inputs,
    the sum of the output errors is least: that of a layer is the energy of its removed whitened singular values (see
    `pivoted_factors`), relative to the energy of its outputs. By ``growth``, which also needs gradients at the outputs
    of all ``layers``, the growth of the loss ``1/2 tr(G dW H dW^T)`` is least, with shrunk Gram matrices G of the
    gradients and H of the inputs (see the score ``k-obs``). Ranks are multiples of `align`. `protect` holds globs of
    parameters that are not factorized; shared weights, and weights of outputs of the model, are not factorized either.
    """

    name: ClassVar[str] = "allocate-ranks"
    reads: ClassVar[tuple[type, ...]] = (Plan, Rewritten, EmbeddingGroups)
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
        """The linear layers, and the facts for their errors."""
        return (Dependencies, Eligible, *WAYS.get(self.by, ()))

    def check(self) -> None:
        """Refuse impossible shares and alignments, and unknown budgets and methods.

        Raises:
            PlanError: if not exactly one share is given, or an option is impossible or unknown.
        """
        if self.by not in WAYS:
            raise PlanError(f"ranks are chosen by {' or '.join(WAYS)}, not {self.by!r}")
        require_one_share(self.sparsity, self.ratio, "every layer")
        if self.budget not in BUDGETS:
            raise PlanError(f"low rank saves {' or '.join(BUDGETS)}, not {self.budget!r}")
        if not isinstance(self.align, int) or self.align < 1:
            raise PlanError(f"align must be a positive whole number, got {self.align}")

    def preflight(self, program: Program) -> Program:
        """Check that the destination can hold factors.

        Raises:
            PlanError: if it cannot.
        """
        return require_free(program, "factors of a low rank")

    def run(self, program: Program) -> Program:
        """The program with a plan of ranks, which includes the widths of an earlier plan.

        Raises:
            PlanError: if the destination cannot hold factors, or the target cannot be reached.
        """
        self.preflight(program)
        consumers, _ = factorable(program, program.fact(Dependencies), self.protect)
        earlier = program.facts.get(Plan)
        if not consumers:
            if earlier is None:
                raise PlanError("no linear layer of the model can have factors of a low rank; protect less")
            log.info("no linear layer of the model can have factors of a low rank")
            return program.with_facts(earlier)
        layers = _Layers.of(program, consumers, self.budget, self.align)
        if self.by == "density" and self.ratio is not None:
            ranks = layers.at(1 - self.ratio)
        else:
            target = self._target(program, layers)
            if target <= 0:
                ranks = {}
            elif self.by == "density":
                ranks = layers.meeting(target)
            else:
                losses = ranked_growth if self.by == "growth" else ranked_errors
                ranks = layers.minimizing(target, losses(program, consumers))
        plan = earlier or Plan(program.fingerprint(), {}, {}, {"destination": program.fact(Eligible).destination.name})
        return program.with_facts(replace(plan, ranks=layers.lower(ranks)))

    def _target(self, program: Program, layers: "_Layers") -> int:
        """The amount to remove."""
        if self.ratio is not None:
            return round(self.ratio * layers.total)
        assert self.sparsity is not None
        total, removed = _total(program, self.budget), 0.0
        if Rewritten in program.facts:
            total, current = _total(program.fact(Rewritten).original, self.budget), total
            removed = total - current
        tables = program.facts.get(EmbeddingGroups)
        removed_by_tables = tables.saved if tables and self.budget == "parameters" else 0
        removed += removed_by_tables
        target, most = round(self.sparsity * total - removed), round(layers.saved(layers.at(0.0)))
        if target <= 0 and not removed_by_tables:
            log.warning(
                "no layer gets a lower rank: the cut removed %.1f %%, no less than the target", 100 * removed / total
            )
        if target > most:
            raise PlanError(
                f"the target is to remove {target:,} {UNITS[self.budget]} ({self.sparsity:.1%}), but at rank "
                f"{self.align} the linear layers save no more than {most:,} ({most / total:.1%}); ask for less, "
                "protect less, or lower the alignment"
            )
        return target


def _total(program: Program, unit: str) -> float:
    """The parameters of a program, or its total in another unit."""
    return Budget.of(program, [], 0, unit).total


@dataclass(frozen=True)
class _Layers:
    """The shapes of weights, the costs of their elements in some unit, and the step of ranks."""

    shapes: Mapping[str, tuple[int, int]]
    costs: Mapping[str, float]
    step: int

    @classmethod
    def of(cls, program: Program, consumers: Collection[Consumer], unit: str, step: int) -> "_Layers":
        nodes = {node.name: node for node in program.graph.nodes}
        shapes, costs = {}, {}
        for consumer in consumers:
            shapes[consumer.weight] = shape_of(program, consumer)
            outputs = prod(size_hint(length) for length in nodes[consumer.node].meta["val"].shape)
            costs[consumer.weight] = 1.0 if unit == "parameters" else outputs / shapes[consumer.weight][0]
        return cls(shapes, costs, step)

    def at(self, density: float) -> dict[str, int]:
        """The ranks at which every layer has at most this share of its elements."""
        return {name: rank_for_density(*shape, density, self.step) for name, shape in self.shapes.items()}

    @property
    def total(self) -> float:
        """The cost of the layers at full ranks."""
        return sum(self.costs[name] * m * n for name, (m, n) in self.shapes.items())

    def saved(self, ranks: Mapping[str, int]) -> float:
        """The cost that these ranks save."""
        return sum(self._saved(name, rank) for name, rank in ranks.items())

    def lower(self, ranks: Mapping[str, int]) -> dict[str, int]:
        """The ranks of the layers with less than the full rank."""
        return {name: rank for name, rank in ranks.items() if rank < min(self.shapes[name])}

    def meeting(self, target: int) -> dict[str, int]:
        """The ranks at the greatest density that saves enough; some are raised if that is nearer to the target."""
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

    def minimizing(self, target: int, errors: Mapping[str, Tensor]) -> dict[str, int]:
        """The ranks that save enough at the least sum of errors; `errors` has those of all ranks for every layer.

        They minimize the error plus a multiplier times the cost; the multiplier is searched for by bisection.
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
        """The ranks, raised one layer after the other as far as the target is still met."""
        filled = dict(ranks)
        for name, rank in ranks.items():
            excess = self.saved(filled) - target
            within = [c for c in choices[name].tolist() if self._saved(name, rank) - self._saved(name, c) <= excess]
            filled[name] = max([rank, *within])
        return filled

    def _choices(self, name: str) -> Tensor:
        """The possible ranks of a layer, the full one last; ranks near it save too little for two products."""
        most = min(self.shapes[name])
        return torch.tensor([*range(self.step, int(GREATEST * most) + 1, self.step), most])

    def _best(self, name: str, choices: Tensor, errors: Tensor, multiplier: float) -> int:
        """The rank with the least error plus multiplier times relative cost."""
        m, n = self.shapes[name]
        cost = self.costs[name] * choices * (m + n - choices)
        return int(choices[(errors[choices] + multiplier * cost / self.total).argmin()])

    def _saved(self, name: str, rank: int) -> float:
        m, n = self.shapes[name]
        return self.costs[name] * (m * n - factor_parameters(m, n, rank))


def ranked_errors(program: Program, consumers: Collection[Consumer]) -> dict[str, Tensor]:
    """The squared error of every layer at all ranks, relative to the energy of its outputs on calibration inputs."""
    collector = Collector(list(consumers))
    sweep(program, program.fact(Calibration), collector)
    tails = {c.weight: _tail(_root(program, c, collector.moments[c.node].gram, 0.0)) for c in consumers}
    return {name: tail / tail[0].clamp(min=1e-300) for name, tail in tails.items()}


def ranked_growth(program: Program, consumers: Collection[Consumer]) -> dict[str, Tensor]:
    """The growth of the loss by the error of every layer at all ranks, relative to that without any of the layers."""
    tails = {}
    with progress("measuring ranks of layers", len(consumers)) as step:
        for c in consumers:
            gram = _retained(program, c, c.dim, _evidence(program).weighted_gram(c))
            damping, _ = cautious_dampings(c, program.fact(GradientSums))
            tails[c.weight] = _tail(output_root(program, c).T @ _root(program, c, gram, damping))
            step()
    whole = torch.stack([tail[0] for tail in tails.values()]).sum()
    return {name: tail / whole.clamp(min=1e-300) for name, tail in tails.items()}


def _root(program: Program, consumer: Consumer, gram: Tensor, damping: float) -> Tensor:
    """The weight of a layer times a root of the damped Gram matrix of its inputs."""
    weight = consumer.matrix(program.weights[consumer.weight]).double()
    return weight @ damped_cholesky(gram, damping * float(gram.diagonal().mean()))


def _tail(matrix: Tensor) -> Tensor:
    """The energy that a matrix loses at each rank from none to the full one."""
    m, n = matrix.shape
    energy = torch.linalg.eigvalsh(matrix @ matrix.T if m <= n else matrix.T @ matrix).clamp(min=0)
    return torch.cat([energy.new_zeros(1), energy.cumsum(0)]).flip(0)


def output_root(program: Program, consumer: Consumer) -> Tensor:
    """A root of the damped Gram matrix of the gradients at the retained outputs of a layer."""
    gram = _retained(program, consumer, 1 - consumer.dim, _evidence(program).sensitivity(consumer))
    _, damping = cautious_dampings(consumer, program.fact(GradientSums))
    return damped_cholesky(gram, damping * float(gram.diagonal().mean()))


def _evidence(program: Program) -> Evidence:
    return Evidence(program, program.fact(Dependencies), None, gradients=program.fact(GradientSums))


def _retained(program: Program, consumer: Consumer, dim: int, gram: Tensor) -> Tensor:
    """The rows and columns of a Gram matrix at the indices that a dimension of a weight retains."""
    cut = program.facts.get(Rewritten)
    kept = cut.keep.get(consumer.weight, {}).get(dim) if cut else None
    return gram if kept is None else narrow(narrow(gram, 0, kept), 1, kept)


def shape_of(program: Program, consumer: Consumer) -> tuple[int, int]:
    """The numbers of outputs and inputs of a linear layer."""
    first, second = program.shapes()[consumer.weight]
    return (first, second) if consumer.dim == 1 else (second, first)
