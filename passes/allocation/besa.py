"""BESA (arXiv:2402.16880): rates learned by gradients, block by block, through masks that follow the ranks.

Every group has candidate rates p_d and learns how to mix them: beta = softmax(theta), and the rate is
alpha = sum beta_d p_d. An index whose rank, as a share of the group, is r goes with the probability that a candidate
above r is meant, the sum of beta_d with p_d > r. The loss of a block is the squared error of its output relative to the
dense one, and the mean alpha of the block, weighted by cost, is to be the alpha* of the budget.

The paper prunes single weights; the structured port is a reconstruction, with these differences. Candidates lie on a
grid from 0 to 1, and theta starts as a bump at alpha*; the sigmoid of the authors' code would keep beta nearly level.
Masks are the probabilities themselves, not hard ones with a straight-through gradient: of few and large pieces that
gradient often points the wrong way. Where the paper adds 5 ((alpha - alpha*) / alpha*)^2 to the loss, steps are taken
along the level of alpha*, where that is zero. What is learned is moved to meet the budget in the end. ``besa`` has
the groups of one layer as a block and the same alpha* everywhere; ``besa-global`` the whole model as one block.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from graphprune.axes.groups import Dependencies
from graphprune.display.progress import progress
from graphprune.errors import CalibrationError
from graphprune.execution.segments import Constants, Segment, load_weights, run, split_at_linear_layers
from graphprune.ir.program import Program
from graphprune.ir.weights import Weights
from graphprune.passes.allocation import ALLOCATIONS
from graphprune.planning.budget import Budget, Knob
from graphprune.planning.interfaces import Allocation, Evidence
from graphprune.planning.masks import Gated
from graphprune.planning.ranking import projected, shares_of
from graphprune.statistics.collector import Calibration

BUMP = 0.15  # how wide the first mixture is


@dataclass(frozen=True)
class Besa(Allocation):
    """`steps` of gradient descent for every block, a calibration batch each, of which `batches` are used.

    A step has the length `rate`, which falls to a tenth. Adam, which the paper takes, would move a group that does
    nothing as fast as one that does all.
    """

    block: Callable[[Knob], str]
    steps: int = 48
    rate: float = 2.0
    candidates: int = 25
    batches: int = 4
    needs_calibration = True
    gradients = True

    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The share that each group keeps, by name."""
        calibration = evidence.program.facts.get(Calibration)
        if calibration is None:
            raise CalibrationError("rates can only be learned on calibration data; put calibrate before allocate")
        budget.require()
        walk = _Walk.start(evidence.program, calibration.batches[: self.batches])
        costs = torch.tensor([budget.price(knob) * knob.size for knob in budget.knobs], dtype=torch.float64)
        aim = min(budget.target / max(float(costs.sum()), 1e-12), 0.95)
        gone = torch.full_like(costs, aim)
        blocks = walk.blocks(budget.knobs, self.block)
        with progress("learning rates", len(blocks)) as step:
            for segments, places in blocks:
                mixtures = _Mixtures.of([budget.knobs[at] for at in places], scores, self.candidates, aim)
                self._learn(walk, segments, mixtures, costs[places], aim)
                gone[places] = mixtures.rates().detach()
                step()
        return shares_of(budget, projected(budget, gone))

    def _learn(self, walk: "_Walk", segments: range, mixtures: "_Mixtures", costs: Tensor, aim: float) -> None:
        """Let the mixtures of one block learn; the walk stands behind the block then."""
        walk.advance(segments.start)
        entries = walk.entries
        walk.advance(segments.stop)
        for n, i in enumerate(islice(cycle(range(len(entries))), self.steps)):
            weights = Gated(walk.program.weights, walk.dependencies, mixtures.masks())
            got, wanted = _numbers(walk.one(segments, weights, i, entries[i])), _numbers(walk.entries[i])
            error = (got - wanted).double().square().sum() / wanted.double().square().sum().clamp(min=1e-30)
            mean = (mixtures.rates() * costs).sum() / costs.sum()
            (slope,) = torch.autograd.grad(error, [mixtures.theta])
            (normal,) = torch.autograd.grad(mean, [mixtures.theta])
            level = slope - normal * (slope * normal).sum() / normal.square().sum()
            with torch.no_grad():
                step = self.rate * 10 ** (-n / self.steps) * level / level.norm().clamp(min=1e-30)
                mixtures.theta.sub_(step + normal * (mean - aim) / normal.square().sum())


@dataclass(frozen=True)
class _Mixtures:
    """What the groups of a block learn: `theta` of shape (knobs, candidates), for the rates `grid`.

    `ranks` holds for every group its knob, and the rank of each index as a share, shape (rows, size): 0 goes first.
    """

    theta: Tensor
    grid: Tensor
    ranks: Mapping[str, tuple[int, Tensor]]

    @classmethod
    def of(cls, knobs: Sequence[Knob], scores: Mapping[str, Tensor], candidates: int, aim: float) -> "_Mixtures":
        """Mixtures with rates near the aim."""
        grid = torch.linspace(0, 1, candidates, dtype=torch.float64)
        theta = (-((grid - aim) / BUMP).square() / 2).repeat(len(knobs), 1).requires_grad_()
        ranks = {
            g.name: (at, (scores[g.name].argsort(dim=1, stable=True).argsort(dim=1) + 0.5) / g.size)
            for at, knob in enumerate(knobs) for g in knob.groups
        }  # fmt: skip
        return cls(theta, grid, ranks)

    def rates(self) -> Tensor:
        """The share of its indices that each knob loses, shape (knobs,)."""
        return self.theta.softmax(1) @ self.grid

    def masks(self) -> dict[str, Tensor]:
        """The probability of every index to stay, by group, shape (rows, size)."""
        beta = self.theta.softmax(1)
        return {n: 1 - (self.grid > ranks[..., None]).double() @ beta[at] for n, (at, ranks) in self.ranks.items()}


@dataclass
class _Walk:
    """Calibration batches on their way through the dense model: they stand before segment `at`."""

    program: Program
    known: Sequence[Mapping[str, Any]]
    entries: list[Any]
    at: int = 0

    @classmethod
    def start(cls, program: Program, batches: Sequence[Sequence[Any]]) -> "_Walk":
        """All batches at the inputs."""
        made = Constants(program)
        return cls(program, [made.of(leaves) for leaves in batches], [None] * len(batches))

    @cached_property
    def dependencies(self) -> Dependencies:
        """The axes of the program."""
        return self.program.fact(Dependencies)

    @cached_property
    def segments(self) -> list[Segment]:
        """The segments of the graph."""
        return split_at_linear_layers(self.program)

    def blocks(self, knobs: Sequence[Knob], name: Callable[[Knob], str]) -> list[tuple[range, list[int]]]:
        """The segments of every block, and the places of its knobs, in order; what overlaps is one block."""
        read = [segment.weights(self.program) for segment in self.segments]
        named: dict[str, list[int]] = {}
        for at, knob in enumerate(knobs):
            named.setdefault(name(knob), []).append(at)
        spans = []
        for places in named.values():
            inside = {p.parameter for at in places for group in knobs[at].groups for p in group.places}
            touched = [i for i, names in enumerate(read) if names & inside]
            spans.append((range(touched[0], touched[-1] + 1), places))
        found: list[tuple[range, list[int]]] = []
        for span, places in sorted(spans, key=lambda one: one[0].start):
            if found and span.start < found[-1][0].stop:
                last, others = found.pop()
                span, places = range(last.start, max(last.stop, span.stop)), [*others, *places]
            found.append((span, places))
        return found

    def advance(self, to: int) -> None:
        """Let the dense model carry all batches to a segment."""
        if to > self.at:
            with torch.no_grad():
                rest = range(self.at, to)
                self.entries = [self.one(rest, self.program.weights, i, e) for i, e in enumerate(self.entries)]
            self.at = to

    def one(self, segments: range, weights: Weights, i: int, entry: Any) -> Any:
        """What leaves the segments if `entry` enters them in batch `i`: of the last the outputs of the graph."""
        leaves = [node.name for node in self.program.graph.output_node().all_input_nodes]
        seen: dict[str, Any] = {}
        for segment in self.segments[segments.start : segments.stop]:
            loaded = load_weights(segment, self.program, weights)
            entry, new = run(segment, self.program, loaded, self.known[i], entry, leaves)
            seen |= {name: value for name, value in new.items() if name in segment.names}
        return entry if segments.stop < len(self.segments) else seen


def _numbers(value: Any) -> Tensor:
    """All floating-point numbers of a value, one after the other."""
    leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return torch.cat([leaf.flatten() for leaf in leaves])


ALLOCATIONS.register("besa")(Besa(lambda knob: knob.groups[0].layer))
ALLOCATIONS.register("besa-global")(Besa(lambda knob: ""))
