"""The pass that refits consumers after a cut, one segment at a time."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from graphprune.axes.groups import Dependencies
from graphprune.axes.rule import Consumer
from graphprune.axes.rule_helpers import as_rows
from graphprune.errors import CalibrationError, PlanError
from graphprune.ir.program import Program, Rewritten
from graphprune.ir.weights import Layered
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.passes.reconstructions.sequential_refit import Walk, shape
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Eligible, Refits
from graphprune.planning.interfaces import Reconstruction
from graphprune.planning.plan import Plan
from graphprune.solvers import new_biases
from graphprune.statistics.collector import Calibration

VIEWS = (torch.ops.aten.view.default, torch.ops.aten.reshape.default, torch.ops.aten._unsafe_view.default)
STATISTICS = ("sequential", "dense", "mixed")


@PASSES.register("refit")
@dataclass(frozen=True)
class Refit(Pass):
    """Give the weights that contract a cut axis new values, `by` a registered method.

    `statistics`: ``sequential`` takes the inputs that the already pruned and refitted segments before make, ``dense``
    those of the dense model. ``mixed`` takes the former and aims at the outputs for a mixture of both, with the share
    `mix` of the latter (MPIFA, arXiv:2501.19090): so it makes up for errors of earlier segments, too. `damping` is
    relative to the mean second moment; without it, it is chosen on held-out calibration tokens.

    Three options want mixed statistics. With `producers`, the maps that make a cut axis come first: least squares
    bring their outputs, on pruned inputs, back to those of the dense model (the two steps of GOA, arXiv:2407.19126);
    with `others`, so do all maps after the first cut that lost nothing. With `residual`, a map whose outputs are added
    to something aims at the sum in the dense model: so every block makes up for what the stream of a residual network
    has lost before it.

    Weights to which the plan gives a rank (see `allocate-ranks`) get new values of that rank; the pass `factorize` then
    needs no data to make factors of them.
    """

    name: ClassVar[str] = "refit"
    needs: ClassVar[tuple[type, ...]] = (Rewritten, Calibration)
    reads: ClassVar[tuple[type, ...]] = (Plan, Eligible)
    makes: ClassVar[tuple[type, ...]] = (Refits,)
    memory_bounded: ClassVar[bool] = True
    by: str = "least-squares"
    statistics: str = "sequential"
    damping: float | None = None
    mix: float = 0.25
    producers: bool = False
    others: bool = False
    residual: bool = False

    def check(self) -> None:
        """Refuse methods and statistics that do not exist, and statistics that do not show what is aimed at.

        Raises:
            CalibrationError: if there are no such statistics, or an option takes mixed ones, and others are chosen.
            RegistryError: if there is no such method.
        """
        RECONSTRUCTIONS[self.by]
        if self.statistics not in STATISTICS:
            raise CalibrationError(f"statistics are {' or '.join(STATISTICS)}, not {self.statistics!r}")
        if (self.producers or self.others or self.residual) and self.statistics != "mixed":
            raise CalibrationError(
                "producers, others and residual aim at what the dense model makes; they want statistics=mixed"
            )

    def preflight(self, program: Program) -> Program:
        """The same program, if there is room for the biases that the method adds.

        Raises:
            PlanError: if a layer takes no bias, or the destination cannot express that it has one.
        """
        if not RECONSTRUCTIONS[self.by].adds_bias:
            return program
        eligible = program.fact(Eligible)
        for consumer in program.fact(Dependencies).maps_of(eligible.groups):
            fault = new_biases.obstacle(program, consumer)
            if not fault and consumer.bias is None:
                fault = eligible.destination.bias_fault(new_biases.bias_name(consumer))
            if fault:
                raise PlanError(
                    f"refit {self.by} adds a bias to every layer behind a cut, and {consumer.weight} can have none: "
                    f"{fault}; use refit least-squares or mask, or another destination"
                )
        return program

    def run(self, program: Program) -> Program:
        """The program with refitted weights.

        Raises:
            CalibrationError: if activations are not finite.
            ExportError: if the destination cannot hold the biases; `preflight` reports that earlier.
        """
        method = RECONSTRUCTIONS[self.by]
        consumers, skipped = refittable(program, method)
        named: dict[str, str] = {}
        if method.adds_bias:
            program, _ = new_biases.add_biases(program, [*consumers, *_companions(program, consumers)])
            named = {c.weight: new_biases.bias_name(c) for c in consumers}
        plan = program.facts.get(Plan)
        ranks = plan.ranks if plan else {}
        makers = _makers(program, ranks, self.producers, self.others)
        beside = _beside(program.fact(Rewritten).original, consumers) if self.residual else {}
        walk = Walk(program, method, consumers, makers, ranks, beside, self.damping, self.statistics, self.mix)
        walk.run()
        refits = Refits(walk.done, skipped, program.weights, named, reduced=frozenset(ranks.keys() & walk.done.keys()))
        return program.with_facts(refits, weights=Layered((walk.changed, program.weights)))


def refittable(program: Program, method: Reconstruction) -> tuple[list[Consumer], dict[str, str]]:
    """The consumers whose columns were cut; and the weights that are left as they are, with the reason."""
    rewritten = program.fact(Rewritten)
    found = rewritten.original.fact(Dependencies).consumers
    readers = new_biases.count_readers(rewritten.original)
    cut = [c for c in found if c.dim in rewritten.keep.get(c.weight, {})]
    skipped: dict[str, str] = {}
    for consumer in cut:
        obstacle = new_biases.obstacle(program, consumer) if method.adds_bias else None
        if readers[consumer.weight] > 1:
            skipped[consumer.weight] = "several layers share it"
        elif obstacle:
            skipped[consumer.weight] = obstacle
    return [c for c in cut if c.weight not in skipped], skipped


def _makers(program: Program, ranks: Collection[str], producers: bool, others: bool) -> list[Consumer]:
    """The linear maps that have all their columns, each with a weight of its own: those to be of a lower rank, those
    that make a cut axis, and the others."""
    rewritten = program.fact(Rewritten)
    readers = new_biases.count_readers(rewritten.original)
    cut = {name: dims.keys() for name, dims in rewritten.keep.items() if name not in rewritten.scales}
    found = [c for c in rewritten.original.fact(Dependencies).consumers if readers[c.weight] == 1]
    whole = [c for c in found if c.dim not in cut.get(c.weight, ()) and c.weight not in rewritten.scales]
    return [c for c in whole if c.weight in ranks or (producers if cut.get(c.weight) else others)]


def _beside(program: Program, consumers: Sequence[Consumer]) -> dict[str, str]:
    """By the node of a linear map, the value of the same shape that is added to its outputs, and nothing else done."""
    nodes = {node.name: node for node in program.graph.nodes}
    found = {}
    for consumer in (c for c in consumers if c.outputs is not None):
        node = nodes[consumer.node]
        while consumer.outputs is as_rows and (user := _only_user(node)).target in VIEWS and _columns_of(user, node):
            node = user
        user = _only_user(node)
        operands = [n for n in user.all_input_nodes if n is not node and shape(n) == shape(node)]
        if user.target is torch.ops.aten.add.Tensor and not user.kwargs and len(operands) == 1:
            found[consumer.node] = operands[0].name
    return found


def _only_user(node: fx.Node) -> fx.Node:
    """What alone reads a node; the node itself if several or none do."""
    return next(iter(node.users)) if len(node.users) == 1 else node


def _columns_of(user: fx.Node, node: fx.Node) -> bool:
    """Has a view the same columns: does it only arrange the rows otherwise?"""
    return bool(user is not node and user.meta["val"].shape[-1] == node.meta["val"].shape[-1])


def _companions(program: Program, consumers: Sequence[Consumer]) -> list[Consumer]:
    """The linear maps that get a bias only because the destination cannot give one to the others alone."""
    new = {new_biases.bias_name(c) for c in consumers if c.bias is None}
    eligible = program.facts.get(Eligible)
    names = eligible.destination.biases(new) - new if eligible and new else set()
    found = program.fact(Rewritten).original.fact(Dependencies).consumers
    return [c for c in found if c.bias is None and new_biases.bias_name(c) in names]
