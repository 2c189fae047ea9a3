"""The pass that replaces weights by low-rank factors, fitted one segment at a time."""

import logging
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.axes.groups import Dependencies
from graphprune.axes.rule import Consumer
from graphprune.display.progress import progress
from graphprune.errors import CalibrationError, PlanError
from graphprune.execution.equivalence import verify_cut
from graphprune.execution.output_comparison import Verification
from graphprune.execution.segments import Segment, split_at_linear_layers
from graphprune.ir.program import Dropped, Factored, Program, Rewritten
from graphprune.ir.weights import Layered, Weights
from graphprune.passes.low_rank.factor_graph import PARTS, factored
from graphprune.pipeline import PASSES, Pass, Timings
from graphprune.planning.facts import OF_ONE_GRAPH, OF_WEIGHTS, Refits
from graphprune.planning.plan import Plan
from graphprune.solvers.embedding_tables import EmbeddingTable, embedding_tables
from graphprune.solvers.factorable import factorable
from graphprune.solvers.pivoted_factors import (
    Pivoted,
    alternating_least_squares,
    exact_factors,
    reconstruct_low_rank,
    reduced_rank_regression,
)
from graphprune.solvers.row_groups import EmbeddingGroups, GroupedFactors
from graphprune.statistics.collector import Calibration, Collector
from graphprune.statistics.stream import Stream, advance_both

log = logging.getLogger(__name__)
RETAINED = (Calibration, Timings, Plan, Rewritten, Dropped, *OF_WEIGHTS)


@PASSES.register("factorize")
@dataclass(frozen=True)
class Factorize(Pass):
    """Replace weights by factors of the ranks in the plan, in the form of rows and coefficients (PIFA), and verify that
    the graph computes what it would with the products of the factors.

    The factors are fitted on inputs from the layers before, already factorized, to the outputs of the layer for a
    mixture of these inputs and those of the original model, with the share `mix` of the latter (MPIFA,
    arXiv:2501.19090). With `rounds`, there are so many rounds of alternating least squares, as published; by default,
    the result is their limit. `damping` is relative to the mean diagonal of the Gram matrix; by default, it is chosen
    on held-out tokens. Weights to which a refit gave their rank are factorized exactly.
    """

    name: ClassVar[str] = "factorize"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Plan, Calibration)
    reads: ClassVar[tuple[type, ...]] = (Rewritten, Dropped, *OF_WEIGHTS, EmbeddingGroups)
    makes: ClassVar[tuple[type, ...]] = (Factored, Verification)
    invalidates: ClassVar[tuple[type, ...]] = OF_ONE_GRAPH
    mix: float = 0.25
    rounds: int | None = None
    damping: float | None = None

    def check(self) -> None:
        """Refuse an impossible mixture.

        Raises:
            CalibrationError: if mix is no share.
        """
        if not 0 <= self.mix <= 1:
            raise CalibrationError(f"mix is a share between 0 and 1, got {self.mix}")

    def run(self, program: Program) -> Program:
        """The program with factors.

        Raises:
            PlanError: if the plan has no ranks, or those of another program.
            CalibrationError: if activations are not finite.
            VerificationError: if the numbers disagree.
        """
        ranks = program.fact(Plan).ranks
        program, tables, layouts = _with_groups(program)
        layers, left = factorable(program, program.fact(Dependencies))
        layers = [layer for layer in layers if layer.weight in ranks]
        if not (ranks or tables) and Rewritten in program.facts and program.fact(Plan).groups:
            log.info("nothing is factorized")
            return program
        if not (ranks or tables) or len(layers) < len(ranks):
            raise PlanError(
                "the plan has no ranks for linear layers of this program; put allocate-ranks before factorize"
            )
        walk = _Walk(program, layers, ranks, self)
        if ranks.keys() <= lowered(program):
            walk.factorize_exactly()
        else:
            walk.run()
        parts = {f"{name}_{part}": getattr(p, part) for name, p in walk.parts.items() for part in PARTS}
        small = factored(program, layers, parts, tables, layouts)
        products = replace(program, weights=Layered((walk.changed, program.weights)))
        groups = program.facts.get(EmbeddingGroups)
        unchanged = {**left, **(groups.left if groups else {})}
        unchanged = {name: why for name, why in unchanged.items() if name not in layouts}
        sizes = {name: groups.sizes[name] for name in layouts} if groups else {}
        facts = [program.facts[kind] for kind in RETAINED if kind in program.facts]
        facts += [replace(groups, lowered={})] if groups else []
        fact = Factored(program, ranks, walk.errors, unchanged, sizes)
        return replace(small, facts={}).with_facts(*facts, fact, verify_cut(products, small, {}, rounded=True))


def _with_groups(program: Program) -> tuple[Program, list[EmbeddingTable], dict[str, GroupedFactors]]:
    """The program with embedding tables at the ranks of their groups, these tables, and the factors of each."""
    groups = program.facts.get(EmbeddingGroups)
    if groups is None or not groups.by_weight:
        return program, [], {}
    if not groups.by_weight.keys() <= lowered(program):
        program = replace(program, weights=Layered((groups.lowered_for(program), program.weights)))
    tables = [t for t in embedding_tables(program, program.fact(Dependencies))[0] if t.weight in groups.by_weight]
    if len(tables) < len(groups.by_weight):
        raise PlanError("the embedding tables whose rows were grouped are not in this program; group them again")
    factors = {t.weight: GroupedFactors.of(program.weights[t.weight], groups.by_weight[t.weight]) for t in tables}
    return program, tables, factors


@dataclass
class _Walk:
    """One walk over the segments of the dense model, and of the model with the products of the factors so far."""

    program: Program
    layers: Sequence[Consumer]
    ranks: Mapping[str, int]
    options: Factorize
    changed: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, Pivoted] = field(default_factory=dict)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)

    def factorize_exactly(self) -> None:
        """Compute the factors of weights that have their ranks already."""
        for consumer in self.layers:
            name, fits = consumer.weight, self.program.fact(Refits).by_weight
            self.parts[name] = exact_factors(consumer.matrix(self.program.weights[name]), self.ranks[name])
            self.changed[name] = consumer.restore(self.parts[name].product).to(self.program.weights[name].dtype)
            self.errors[name] = fits[name].error_before, fits[name].error_after

    def run(self) -> None:
        """Fit all factors."""
        calibration = self.program.fact(Calibration)
        nodes = {consumer.node for consumer in self.layers}
        segments = split_at_linear_layers(self.program)
        last = max(i for i, segment in enumerate(segments) if nodes & segment.names)
        self.dense = Stream.start(self.program, calibration)
        self.pruned = replace(self.dense)
        with progress("factorizing", len(self.layers)) as step:
            for i, segment in enumerate(segments[: last + 1]):
                in_segment = [consumer for consumer in self.layers if consumer.node in segment.names]
                for stage in stages(segment, in_segment):
                    self._fit(segment.upstream_of({c.x for c in stage}), stage)
                    step(len(stage))
                if i < last:
                    self._advance(segment)

    def _advance(self, segment: Segment) -> None:
        """Move both streams to the next segment."""
        alike = self.dense.entries is self.pruned.entries or segment.entry is None
        exits = self.dense.advance(segment, self.program.weights)
        if not alike or segment.weights(self.program) & self.changed.keys():
            self.pruned.entries = self.pruned.advance(segment, self._weights)
        else:
            self.pruned.entries = exits
        self.dense.entries = exits

    @property
    def _weights(self) -> Weights:
        return Layered((self.changed, self.program.weights))

    def _fit(self, before: Segment, stage: Sequence[Consumer]) -> None:
        """Collect the inputs of some layers, and fit their factors."""
        calibration, mix = self.program.fact(Calibration), self.options.mix
        weights = {c.weight: self.program.weights[c.weight] for c in stage}
        fitted, held = (Collector(stage, mix=mix, weights=weights) for _ in range(2))
        collectors = [held if calibration.held_out(i) else fitted for i in range(len(calibration.batches))]
        advance_both(self.dense, self.pruned, before, self._weights, collectors)
        fit = reduced_rank_regression if self.options.rounds is None else alternating_least_squares(self.options.rounds)
        for consumer in stage:
            name, weight = consumer.weight, consumer.matrix(self.program.weights[consumer.weight])
            moments = fitted.moments_with_drift[consumer.node], held.moments_with_drift.get(consumer.node)
            every = torch.arange(weight.shape[1])
            factors, result = reconstruct_low_rank(weight, every, self.ranks[name], *moments, self.options.damping, fit)
            self.parts[name] = factors
            self.changed[name] = consumer.restore(result.weight).contiguous()
            self.errors[name] = result.error_before, result.error_after


def lowered(program: Program) -> Set[str]:
    """The weights that got a lower rank by a refit."""
    refits = program.facts.get(Refits)
    return refits.reduced if refits else frozenset()


def stages(segment: Segment, layers: Sequence[Consumer]) -> Iterator[list[Consumer]]:
    """The layers of a segment in stages: the inputs of one stage depend on earlier stages only."""
    nodes, level = {c.node for c in layers}, dict[str, int]()
    for node in segment.nodes:
        above = [level.get(n.name, 0) for n in node.all_input_nodes]
        level[node.name] = max(above, default=0) + (node.name in nodes)
    for depth in sorted({level.get(c.x, 0) for c in layers}):
        yield [c for c in layers if level.get(c.x, 0) == depth]
