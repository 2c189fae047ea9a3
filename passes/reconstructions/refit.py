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
from graphprune.solvers.row_groups import EmbeddingGroups
from graphprune.statistics.collector import Calibration
from graphprune.statistics.moments import GradientSums

VIEWS = (torch.ops.aten.view.default, torch.ops.aten.reshape.default, torch.ops.aten._unsafe_view.default)
STATISTICS = ("sequential", "dense", "mixed")


@PASSES.register("refit")
@dataclass(frozen=True)
class Refit(Pass):
    """Refit the weights that contract a cut axis, `by` a registered method.

    `statistics`: ``sequential`` takes the inputs from the segments before, pruned and refitted, and ``dense`` those of
    the dense model. ``mixed`` takes the former and fits the outputs for a mixture of both, with the share `mix` of the
    latter (MPIFA, arXiv:2501.19090), which also corrects errors of earlier segments. `damping` is relative to the mean
    diagonal of the Gram matrix; by default, it is chosen on held-out calibration tokens.

    Four options need mixed statistics. With `producers`, the layers that produce a cut axis are refitted first, by
    least squares, to their outputs in the dense model (the two steps of GOA, arXiv:2407.19126); with `others`, so are
    all uncut layers after the first cut. With `residual`, cut layers and all linear layers whose outputs are added to
    another value are fitted to the sum in the dense model, so that every block corrects the residual stream before it;
    with `relative`, the errors of a token count relative to the energy of its sum, as the norms behind it scale them.

    Weights that have a rank in the plan (see `allocate-ranks`) are refitted at that rank; the pass `factorize` then
    factorizes them without data. Where gradients at their outputs are known, these weigh the errors of a low rank.
    Embedding tables whose rows were grouped (see `group-embeddings`) have the ranks of their groups in the inputs of
    all layers, which so correct a part of the error. Stacks that `merge-experts` refitted are unchanged.
    """

    name: ClassVar[str] = "refit"
    needs: ClassVar[tuple[type, ...]] = (Rewritten, Calibration)
    reads: ClassVar[tuple[type, ...]] = (Dependencies, Plan, Eligible, EmbeddingGroups, GradientSums, Refits)
    makes: ClassVar[tuple[type, ...]] = (Refits,)
    memory_bounded: ClassVar[bool] = True
    by: str = "least-squares"
    statistics: str = "sequential"
    damping: float | None = None
    mix: float = 0.25
    producers: bool = False
    others: bool = False
    residual: bool = False
    relative: bool = False

    def check(self) -> None:
        """Refuse unknown methods and statistics, and options that need other statistics.

        Raises:
            CalibrationError: if the statistics are unknown, or an option needs mixed ones.
            RegistryError: if there is no such method.
        """
        RECONSTRUCTIONS[self.by]
        if self.statistics not in STATISTICS:
            raise CalibrationError(f"statistics are {' or '.join(STATISTICS)}, not {self.statistics!r}")
        if (self.producers or self.others or self.residual or self.relative) and self.statistics != "mixed":
            raise CalibrationError(
                "producers, others, residual and relative fit outputs of the dense model; they need statistics=mixed"
            )

    def preflight(self, program: Program) -> Program:
        """Check that all layers can have the biases that the method adds.

        Raises:
            PlanError: if a layer cannot have a bias, or the destination cannot express it.
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
                    f"refit {self.by} adds a bias to every layer after a cut, and {consumer.weight} can have none: "
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
        known = program.facts.get(Refits) or Refits({}, {}, program.weights)
        merged = {name: known.by_weight[name] for name in known.merged}
        consumers, skipped = refittable(program, method)
        consumers = [consumer for consumer in consumers if consumer.weight not in merged]
        skipped = {name: why for name, why in skipped.items() if name not in merged}
        branches = _branches(program, consumers) if self.residual and not method.adds_bias else []
        bias_names: dict[str, str] = {}
        if method.adds_bias:
            program, _ = new_biases.add_biases(program, [*consumers, *_companions(program, consumers)])
            bias_names = {c.weight: new_biases.bias_name(c) for c in consumers}
        plan = program.facts.get(Plan)
        ranks = plan.ranks if plan else {}
        own = {branch.node for branch in branches}
        producers = [c for c in _producers(program, ranks, self.producers, self.others) if c.node not in own]
        addends = _addends(program.fact(Rewritten).original, [*consumers, *branches]) if self.residual else {}
        groups, gathered = program.facts.get(EmbeddingGroups), program.facts.get(GradientSums)
        every = [*consumers, *branches, *producers]
        tables = groups.lowered if groups else {}
        walk = Walk(
            program, method, consumers, branches, producers, ranks, addends, self.damping, self.statistics, self.mix,
            self.relative, {c.weight: c for c in every if gathered and c.node in gathered.output_grams},
        )  # fmt: skip
        walk.run(tables)
        reduced = frozenset(ranks.keys() & walk.done.keys()) | tables.keys()
        before = known.before if merged else program.weights
        done, merges = {**merged, **walk.done}, frozenset(merged)
        refits = Refits(done, skipped, before, bias_names, reduced=reduced, merged=merges)
        return program.with_facts(refits, weights=Layered((walk.changed, program.weights)))


def refittable(program: Program, method: Reconstruction) -> tuple[list[Consumer], dict[str, str]]:
    """The consumers whose columns were cut, and the weights that are not refitted, with the reason."""
    rewritten = program.fact(Rewritten)
    dependencies = rewritten.original.fact(Dependencies)
    readers = new_biases.count_readers(rewritten.original)
    cut = [c for c in (*dependencies.consumers, *dependencies.members) if c.dim in rewritten.keep.get(c.weight, {})]
    skipped: dict[str, str] = {}
    for consumer in cut:
        obstacle = new_biases.obstacle(program, consumer) if method.adds_bias else None
        if readers[consumer.weight] > 1:
            skipped[consumer.weight] = "several layers share it"
        elif consumer.member is not None and consumer.member.dim in rewritten.keep[consumer.weight]:
            skipped[consumer.weight] = "its stack is cut, too"
        elif obstacle:
            skipped[consumer.weight] = obstacle
    return [c for c in cut if c.weight not in skipped], skipped


def _producers(program: Program, ranks: Collection[str], producers: bool, others: bool) -> list[Consumer]:
    """The layers with all their columns and an unshared weight: those that get a lower rank, those that produce a cut
    axis if `producers`, and all other ones if `others`."""
    rewritten = program.fact(Rewritten)
    readers = new_biases.count_readers(rewritten.original)
    cut = {name: dims.keys() for name, dims in rewritten.keep.items() if name not in rewritten.scales}
    unshared = [c for c in rewritten.original.fact(Dependencies).consumers if readers[c.weight] == 1]
    whole = [c for c in unshared if c.dim not in cut.get(c.weight, ()) and c.weight not in rewritten.scales]
    return [c for c in whole if c.weight in ranks or (producers if cut.get(c.weight) else others)]


def _branches(program: Program, consumers: Sequence[Consumer]) -> list[Consumer]:
    """The linear layers with all their columns whose outputs are added to another value, without the `consumers`."""
    known = {c.node for c in consumers}
    whole = [c for c in _producers(program, (), True, True) if c.node not in known and c.outputs is as_rows]
    added = _addends(program.fact(Rewritten).original, whole)
    return [c for c in whole if c.node in added]


def _addends(program: Program, consumers: Sequence[Consumer]) -> dict[str, str]:
    """The value of the same shape that is added to the outputs of a layer, by its node, if nothing else reads them."""
    nodes = {node.name: node for node in program.graph.nodes}
    addends = {}
    for consumer in (c for c in consumers if c.outputs is not None):
        node = nodes[consumer.node]
        while consumer.outputs is as_rows and (user := _only_user(node)).target in VIEWS and _columns_of(user, node):
            node = user
        user = _only_user(node)
        operands = [n for n in user.all_input_nodes if n is not node and shape(n) == shape(node)]
        if user.target is torch.ops.aten.add.Tensor and not user.kwargs and len(operands) == 1:
            addends[consumer.node] = operands[0].name
    return addends


def _only_user(node: fx.Node) -> fx.Node:
    """The only user of a node; the node itself if it has none or several."""
    return next(iter(node.users)) if len(node.users) == 1 else node


def _columns_of(user: fx.Node, node: fx.Node) -> bool:
    """Whether a view has the same columns and rearranges the rows alone."""
    return bool(user is not node and user.meta["val"].shape[-1] == node.meta["val"].shape[-1])


def _companions(program: Program, consumers: Sequence[Consumer]) -> list[Consumer]:
    """The layers that must have a bias, too, because the destination cannot add one to the others alone."""
    new = {new_biases.bias_name(c) for c in consumers if c.bias is None}
    eligible = program.facts.get(Eligible)
    names = eligible.destination.biases(new) - new if eligible and new else set()
    all_consumers = program.fact(Rewritten).original.fact(Dependencies).consumers
    return [c for c in all_consumers if c.bias is None and new_biases.bias_name(c) in names]
