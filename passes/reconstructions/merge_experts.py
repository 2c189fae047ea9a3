"""The pass that distributes what removed experts computed to the retained ones.

Like the merging of REAM in its aim, but by least squares, without averages of weights: a token of a removed expert is
routed to retained ones, whose last linear layers are refitted so that the weighted sum is that of the dense mixture.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from graphprune.axes.algebra import primes
from graphprune.axes.groups import Dependencies
from graphprune.axes.rule import Consumer
from graphprune.display.progress import progress
from graphprune.errors import CalibrationError
from graphprune.execution.segments import Segment, split
from graphprune.ir.program import Program, Rewritten
from graphprune.ir.weights import Layered, Narrowed, narrow
from graphprune.passes.reconstructions.expert_tail import Tail
from graphprune.passes.reconstructions.sequential_refit import fill
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Refits
from graphprune.planning.interfaces import Refitted
from graphprune.planning.plan import Plan
from graphprune.planning.refused_choices import refusing
from graphprune.solvers import new_biases
from graphprune.solvers.normal_equations import damped_cholesky
from graphprune.statistics.collector import Calibration, at_least_single
from graphprune.statistics.moments import Moments
from graphprune.statistics.stream import Stream

DAMPINGS = (0.01, 0.1, 1.0, 10.0)
SINGLE_PRECISION_FROM = 1e-3  # damping with which single precision suffices for a preconditioner

log = logging.getLogger(__name__)


@PASSES.register("merge-experts")
@dataclass(frozen=True)
class MergeExperts(Pass):
    """Refit the last linear layers of retained experts to the sum of the dense mixture, on dense inputs.

    All experts are refitted together, in `rounds` of conjugate gradients that are preconditioned by the Gram matrix of
    each expert. `damping` is relative to the mean diagonal of that matrix; by default, it is chosen on held-out
    batches, for the first mixture among four, then among the one chosen there and ten times that. An expert with fewer
    tokens than columns is damped more. A layer whose error on held-out batches does not fall is unchanged.
    """

    name: ClassVar[str] = "merge-experts"
    needs: ClassVar[tuple[type, ...]] = (Rewritten, Calibration, Plan)
    reads: ClassVar[tuple[type, ...]] = (Refits,)
    makes: ClassVar[tuple[type, ...]] = (Refits,)
    memory_bounded: ClassVar[bool] = True
    rounds: int = 3
    damping: float | None = None

    def check(self) -> None:
        """Refuse impossible numbers.

        Raises:
            CalibrationError: if there is no round, or the damping is not positive.
        """
        if self.rounds < 1 or (self.damping is not None and not self.damping > 0):
            raise CalibrationError(
                f"merge-experts needs at least one round and a positive damping, got {self.rounds} and {self.damping}"
            )

    def run(self, program: Program) -> Program:
        """The program with refitted experts."""
        known = program.facts.get(Refits) or Refits({}, {}, program.weights)
        walk = _Walk(self, program)
        walk.run()
        for name, why in walk.skipped.items():
            log.warning("experts are not merged into %s: %s", name, why)
        refits = Refits(
            {**known.by_weight, **walk.done}, {**known.skipped, **walk.skipped}, known.before, known.biases,
            known.tuned, known.reduced, known.merged | walk.done.keys(),
        )  # fmt: skip
        changed = {name: refit.weight for name, refit in walk.done.items()}
        return program.with_facts(refits, weights=Layered((changed, program.weights)))


@dataclass
class _Walk:
    """One walk of the dense inputs through the original graph; every mixture that lost experts is refitted there."""

    options: MergeExperts
    program: Program
    done: dict[str, Refitted] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    dampings: Sequence[float] = field(init=False)  # those to try

    def __post_init__(self) -> None:
        self.dampings = DAMPINGS if self.options.damping is None else (self.options.damping,)

    def run(self) -> None:
        """Refit all mixtures."""
        rewritten, plan = self.program.fact(Rewritten), self.program.fact(Plan)
        original = rewritten.original
        groups = original.fact(Dependencies).by_name
        routed = {name: rows for name, rows in plan.groups.items() if groups[name].routed}
        if not routed:
            return
        masked = refusing(original, routed)
        tails = self._tails({groups[name].prime for name in routed}, masked)
        dense, other = (Stream.start(each, self.program.fact(Calibration)) for each in (original, masked))
        busy = {tail.total for tail in tails}
        pairs = list(zip(split(original, busy), split(masked, busy), strict=True))
        last = max((i for i, (segment, _) in enumerate(pairs) if busy & segment.names), default=-1)
        with progress("merging experts", (last + 1) * len(dense.batch_indices)) as tick:
            for segment, refused in pairs[: last + 1]:
                other.entries = dense.entries
                for tail in (tail for tail in tails if tail.total in segment.names):
                    self._merge(_Mixture(tail, dense, other, segment, refused, rewritten))
                dense.entries = dense.advance(segment, dense.program.weights, tick)

    def _tails(self, cut: set[Any], masked: Program) -> list[Tail]:
        """The tails of mixtures that lost experts, without those that cannot be refitted."""
        rewritten, dependencies = self.program.fact(Rewritten), masked.fact(Dependencies)
        readers = new_biases.count_readers(rewritten.original)
        tails = list[Tail]()
        for part in (c for c in dependencies.contributions if cut & {*primes(c.axis)}):
            tail = Tail.of(part, masked, dependencies)
            weight = tail.members[0].weight if tail else part.node
            if tail is None:
                self.skipped[weight] = "its rows are not the outputs of linear layers that are added up"
            elif readers[weight] > 1:
                self.skipped[weight] = "several layers share it"
            elif {*rewritten.keep.get(weight, {})} - {_dim(tail.members[0]), tail.members[0].dim}:
                self.skipped[weight] = "its outputs are cut, too"
            else:
                tails.append(tail)
        return tails

    def _merge(self, mixture: "_Mixture") -> None:
        """Refit the experts of one mixture in rounds, unless the error on held-out batches does not fall."""
        rewritten = self.program.fact(Rewritten)
        name = mixture.weight
        retained = rewritten.keep[name][_dim(mixture.tail.members[0])].flatten().tolist()
        try:
            equations = mixture.equations(retained)
            trials = [self._changes(mixture, equations, each) for each in self.dampings]
            before, *errors = mixture.errors([{}, *trials])
        except CalibrationError as fault:
            self.skipped[name] = str(fault)
            return
        after, best = min((error, at) for at, error in enumerate(errors))
        damping = self.dampings[best]
        if self.dampings is DAMPINGS:
            self.dampings = DAMPINGS[best : best + 2]
        if not after < before:
            self.skipped[name] = f"the error on held-out tokens does not fall ({before:.3g} to {after:.3g})"
            return
        new = mixture.changed(mixture.start, trials[best])
        narrow = Narrowed({name: new}, {name: rewritten.keep[name]})[name].contiguous()
        self.done[name] = Refitted(narrow, damping, before, after)

    def _changes(self, mixture: "_Mixture", equations: "Equations", damping: float) -> dict[int, Tensor]:
        return conjugate_gradients(equations, mixture.product, self.options.rounds, damping)


@dataclass(frozen=True)
class _Mixture:
    """One mixture: the segments of the dense graph and of that without the removed experts, and their inputs."""

    tail: Tail
    dense: Stream
    other: Stream
    segment: Segment
    refused: Segment
    cut: Rewritten

    @property
    def weight(self) -> str:
        """The stack of the last linear layers."""
        return self.tail.members[0].weight

    @cached_property
    def columns(self) -> Tensor | None:
        """One at the retained columns of every expert and zero at others, in the shape of the stack; None if all are
        retained."""
        dim = self.tail.members[0].dim
        kept = self.cut.keep[self.weight].get(dim)
        if kept is None:
            return None
        whole = torch.ones_like(self.cut.original.weights[self.weight])
        return fill(torch.zeros_like(whole), narrow(whole, dim, kept), {dim: kept})

    @cached_property
    def start(self) -> Tensor:
        """The stack of the dense mixture with zeros in removed columns."""
        weight = self.cut.original.weights[self.weight]
        return weight if self.columns is None else weight * self.columns

    def errors(self, trials: Sequence[Mapping[int, Tensor]]) -> list[float]:
        """The squared errors of the sum with each of these changes, relative to the squares of the dense sum, on
        held-out batches if there are any."""
        errors, energy = [0.0] * len(trials), 0.0
        for i, right, known in self._batches(held_out=True):
            energy += float(right.double().square().sum())
            for at, changes in enumerate(trials):
                error = right - self._outputs(i, known, self.changed(self.start, changes))[self.tail.total]
                errors[at] += float(error.double().square().sum())
        return [error / max(energy, torch.finfo(torch.float64).tiny) for error in errors]

    def equations(self, retained: Sequence[int]) -> "Equations":
        """The normal equations of the changes of all retained experts that have tokens."""
        moments, crosses = dict[int, Moments](), dict[int, Tensor]()
        for i, right, known in self._batches():
            seen = known | self._outputs(i, known, self.start)
            self.tail.require_linear(seen, self._late_weights, self.other.program)
            for e, own, gates, rows in self._rows(right - seen[self.tail.total], seen):
                if e in retained and len(own):
                    moments.setdefault(e, Moments.empty(own.shape[1])).add(own * gates[:, None])
                    _accumulate(crosses, e, rows.T @ own)
        scales = {e: float(m.squares.mean()) * max(1.0, len(m.sums) / m.tokens) for e, m in moments.items()}
        return Equations({e: m.gram for e, m in moments.items()}, crosses, scales)

    def product(self, changes: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The cross products of the rows of each expert with what these changes add to the sum."""
        products = dict[int, Tensor]()
        weight = self.changed(self.start.new_zeros(()).expand_as(self.start), changes)
        for i, _, known in self._batches(dense=False):
            seen = known | self._outputs(i, known, weight)
            zeros = torch.zeros_like(seen[self.tail.start])
            none = self.tail.run(zeros, seen, self._late_weights, self.other.program)
            for e, own, _, rows in self._rows(seen[self.tail.total] - none, seen):
                if e in changes:
                    _accumulate(products, e, rows.T @ own)
        return products

    def changed(self, weight: Tensor, changes: Mapping[int, Tensor]) -> Tensor:
        """A stack with changes added to its members."""
        new = weight.clone(memory_format=torch.contiguous_format)
        for consumer, member in ((c, c.member) for c in self.tail.members if c.member is not None):
            if member.index in changes:
                new.select(member.dim, member.index).add_(consumer.restore(changes[member.index]).to(new))
        return new

    def _rows(self, error: Tensor, seen: Mapping[str, Any]) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Index, inputs, router weights and errors of the rows of every expert."""
        rows, gates = self.tail.pulled(error, seen, self._late_weights, self.other.program)
        for consumer, member in ((c, c.member) for c in self.tail.members if c.member is not None):
            own, gate, error = (at_least_single(member.rows(v, seen)) for v in (seen[consumer.x], gates, rows))
            retained = own if self.columns is None else own * consumer.matrix(self.columns)[0].to(own)
            yield member.index, retained, gate, error

    def _batches(self, held_out: bool = False, dense: bool = True) -> Iterator[tuple[int, Any, dict[str, Any]]]:
        """Position, dense sum, and the values that the late part reads, of the batches to fit or of those held out.

        The sum is None without `dense`.
        """
        total = self.tail.total
        early, loaded = self._early
        whole = self.segment.upstream_of({total})
        right = self.dense.load(whole, self.dense.program.weights) if dense else {}
        for i, number in enumerate(self.dense.batch_indices):
            if self._has_held_out and self.dense.calibration.held_out(number) is not held_out:
                continue
            known = self.other.run_batch(i, early, loaded, self._known)[1]
            yield i, self.dense.run_batch(i, whole, right, {total})[1][total] if dense else None, known

    def _outputs(self, i: int, known: Mapping[str, Any], weight: Tensor) -> dict[str, Any]:
        """Outputs of the linear layers with this stack, and their sum, for one batch."""
        weights = {**self._late_weights, self.weight: weight}
        return self.other.run_batch(i, self._late, weights, {self.tail.start, self.tail.total}, known)[1]

    @cached_property
    def _early(self) -> tuple[Segment, dict[str, Tensor]]:
        """The part that does not depend on the stack, with its weights."""
        early = self.refused.upstream_of(self._known)
        return early, self.other.load(early, self.other.program.weights)

    @cached_property
    def _late(self) -> Segment:
        """The part that depends on the stack, up to the sum."""
        needed = self.refused.upstream_of({self.tail.total})
        names = self.other.program.names
        return needed.downstream_of({n.name for n in needed.nodes if self.weight in names(n.all_input_nodes)})

    @cached_property
    def _late_weights(self) -> dict[str, Tensor]:
        """Weights of the late part, without the stack."""
        names = self._late.weights(self.other.program) - {self.weight}
        return self.other.load(self._late, {name: self.other.program.weights[name] for name in names})

    @cached_property
    def _known(self) -> set[str]:
        """The values that the late part and a fit read."""
        late = self._late.names
        read = {n.name for node in self._late.nodes for n in node.all_input_nodes if n.op != "get_attr"}
        return (read | self.tail.watch) - late

    @property
    def _has_held_out(self) -> bool:
        calibration = self.dense.calibration
        return any(calibration.held_out(number) for number in self.dense.batch_indices)


@dataclass(frozen=True)
class Equations:
    """Normal equations of changes: Gram matrices and right sides, shape (outputs, columns), by expert, and the unit of
    the damping of each."""

    grams: Mapping[int, Tensor]
    crosses: Mapping[int, Tensor]
    scales: Mapping[int, float]


def conjugate_gradients(
    equations: Equations, product: Callable[[Mapping[int, Tensor]], Mapping[int, Tensor]], rounds: int, damping: float
) -> dict[int, Tensor]:
    """Changes after some rounds of conjugate gradients, preconditioned by the blocks of single experts.

    `product` multiplies by the matrix of all experts together.
    """
    tiny = torch.finfo(torch.float64).tiny
    ridges = {e: max(damping * scale, tiny) for e, scale in equations.scales.items()}
    single = torch.float if damping >= SINGLE_PRECISION_FROM else torch.double
    factors = {e: damped_cholesky(gram.to(single), ridges[e]) for e, gram in equations.grams.items()}
    residual = {e: cross.to(single) for e, cross in equations.crosses.items()}
    changes = {e: torch.zeros_like(cross) for e, cross in residual.items()}
    direction, energy = dict[int, Tensor](), 0.0
    for _ in range(rounds if residual else 0):
        steps = {e: torch.cholesky_solve(rest.T, factors[e]).T for e, rest in residual.items()}
        previous, energy = energy, _inner(residual, steps)
        if energy <= 0:
            break
        turn = energy / previous if previous else 0.0
        direction = {e: step + turn * direction[e] if e in direction else step for e, step in steps.items()}
        image = {e: part.to(single) + ridges[e] * direction[e] for e, part in product(direction).items()}
        length = energy / _inner(direction, image)
        for e, step in direction.items():
            changes[e] += length * step
            residual[e] = residual[e] - length * image[e]
    return changes


def _inner(a: Mapping[int, Tensor], b: Mapping[int, Tensor]) -> float:
    return sum(float((a[e] * b[e]).sum(dtype=torch.float64)) for e in a)


def _accumulate(sums: dict[int, Tensor], e: int, new: Tensor) -> None:
    sums[e] = sums[e].add_(new) if e in sums else new.double()


def _dim(consumer: Consumer) -> int:
    """The dimension of a stack that selects its members."""
    assert consumer.member is not None
    return consumer.member.dim
