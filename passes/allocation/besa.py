"""BESA (arXiv:2402.16880): pruning rates learned by gradients, block by block, through masks ordered by score.

Every group has candidate rates p_d and learns a mixture of them: beta = softmax(theta), and the rate is
alpha = sum beta_d p_d. An index whose rank, as a share of the group, is r is removed with the probability of the
candidates above r, the sum of beta_d with p_d > r. The loss of a block is the squared error of its output relative to
the dense one, and the mean alpha of the block, weighted by cost, must equal the alpha* of the budget.

The paper prunes single weights; this structured version is a reconstruction, with these differences. Candidates lie on
a grid from 0 to 1, and theta starts as a bump at alpha*; the sigmoid of the authors' code would make beta nearly
uniform. Masks are the probabilities themselves instead of hard masks with a straight-through gradient, which often
points in the wrong direction for few and large pieces. Where the paper adds 5 ((alpha - alpha*) / alpha*)^2 to the
loss, steps are projected on the level set of alpha*, where this term is zero. The learned rates are finally shifted to
meet the budget. ``besa`` takes the groups of one layer as a block and the same alpha* for all blocks; ``besa-global``
takes the whole model as one block.
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

BUMP = 0.15  # standard deviation of the first mixture


@dataclass(frozen=True)
class Besa(Allocation):
    """Gradient descent for every block, in `steps` of one calibration batch each; the first `batches` take turns.

    A step has the length `rate`, which decays to a tenth. The Adam of the paper would move a group without influence as
    fast as a decisive one.
    """

    block: Callable[[Knob], str]
    steps: int = 48
    rate: float = 2.0
    candidates: int = 25
    batches: int = 4
    needs_calibration = True
    gradients = True

    def shares(self, budget: Budget, scores: Mapping[str, Tensor], evidence: Evidence) -> Mapping[str, float]:
        """The retained share of each group, by name."""
        calibration = evidence.program.facts.get(Calibration)
        if calibration is None:
            raise CalibrationError("rates can only be learned on calibration data; put calibrate before allocate")
        budget.require()
        walk = _Walk.start(evidence.program, calibration.batches[: self.batches])
        costs = torch.tensor([budget.cost_per_index(knob) * knob.size for knob in budget.knobs], dtype=torch.float64)
        target = min(budget.target / max(float(costs.sum()), 1e-12), 0.95)
        removed = torch.full_like(costs, target)
        blocks = walk.blocks(budget.knobs, self.block)
        with progress("learning rates", len(blocks)) as step:
            for segments, indices in blocks:
                mixtures = _Mixtures.of([budget.knobs[i] for i in indices], scores, self.candidates, target)
                self._learn(walk, segments, mixtures, costs[indices], target)
                removed[indices] = mixtures.rates().detach()
                step()
        return shares_of(budget, projected(budget, removed))

    def _learn(self, walk: "_Walk", segments: range, mixtures: "_Mixtures", costs: Tensor, target: float) -> None:
        """Train the mixtures of one block, and move the walk behind it."""
        walk.advance(segments.start)
        entries = walk.entries
        walk.advance(segments.stop)
        for n, i in enumerate(islice(cycle(range(len(entries))), self.steps)):
            weights = Gated(walk.program.weights, walk.dependencies, mixtures.masks())
            masked, dense = _numbers(walk.run(segments, weights, i, entries[i])), _numbers(walk.entries[i])
            error = (masked - dense).double().square().sum() / dense.double().square().sum().clamp(min=1e-30)
            mean = (mixtures.rates() * costs).sum() / costs.sum()
            (slope,) = torch.autograd.grad(error, [mixtures.theta])
            (normal,) = torch.autograd.grad(mean, [mixtures.theta])
            level = slope - normal * (slope * normal).sum() / normal.square().sum()
            with torch.no_grad():
                step = self.rate * 10 ** (-n / self.steps) * level / level.norm().clamp(min=1e-30)
                mixtures.theta.sub_(step + normal * (mean - target) / normal.square().sum())


@dataclass(frozen=True)
class _Mixtures:
    """Parameters of the knobs of a block: `theta` of shape (knobs, candidates), for the rates `grid`.

    `ranks` has for every group its knob, and the rank of each index as a share, shape (rows, size), 0 for the lowest.
    """

    theta: Tensor
    grid: Tensor
    ranks: Mapping[str, tuple[int, Tensor]]

    @classmethod
    def of(cls, knobs: Sequence[Knob], scores: Mapping[str, Tensor], candidates: int, target: float) -> "_Mixtures":
        """Mixtures with rates near the target."""
        grid = torch.linspace(0, 1, candidates, dtype=torch.float64)
        theta = (-((grid - target) / BUMP).square() / 2).repeat(len(knobs), 1).requires_grad_()
        ranks = {
            g.name: (i, (scores[g.name].argsort(dim=1, stable=True).argsort(dim=1) + 0.5) / g.size)
            for i, knob in enumerate(knobs) for g in knob.groups
        }  # fmt: skip
        return cls(theta, grid, ranks)

    def rates(self) -> Tensor:
        """The removed share of each knob, shape (knobs,)."""
        return self.theta.softmax(1) @ self.grid

    def masks(self) -> dict[str, Tensor]:
        """The probability of every index to be retained, by group, shape (rows, size)."""
        beta = self.theta.softmax(1)
        return {n: 1 - (self.grid > ranks[..., None]).double() @ beta[i] for n, (i, ranks) in self.ranks.items()}


@dataclass
class _Walk:
    """Calibration batches that are run through the dense model; `entries` are their values before segment `at`."""

    program: Program
    constants: Sequence[Mapping[str, Any]]
    entries: list[Any]
    at: int = 0

    @classmethod
    def start(cls, program: Program, batches: Sequence[Sequence[Any]]) -> "_Walk":
        """All batches at the inputs."""
        constants = Constants(program)
        return cls(program, [constants.of(leaves) for leaves in batches], [None] * len(batches))

    @cached_property
    def dependencies(self) -> Dependencies:
        """The axes of the program."""
        return self.program.fact(Dependencies)

    @cached_property
    def segments(self) -> list[Segment]:
        """The segments of the graph."""
        return split_at_linear_layers(self.program)

    def blocks(self, knobs: Sequence[Knob], name: Callable[[Knob], str]) -> list[tuple[range, list[int]]]:
        """The segments of every block, and the indices of its knobs, in order; overlapping blocks are joined."""
        read = [segment.weights(self.program) for segment in self.segments]
        named: dict[str, list[int]] = {}
        for i, knob in enumerate(knobs):
            named.setdefault(name(knob), []).append(i)
        spans = []
        for indices in named.values():
            parameters = {place.parameter for i in indices for group in knobs[i].groups for place in group.places}
            touched = [i for i, names in enumerate(read) if names & parameters]
            spans.append((range(touched[0], touched[-1] + 1), indices))
        blocks: list[tuple[range, list[int]]] = []
        for span, indices in sorted(spans, key=lambda one: one[0].start):
            if blocks and span.start < blocks[-1][0].stop:
                last, others = blocks.pop()
                span, indices = range(last.start, max(last.stop, span.stop)), [*others, *indices]
            blocks.append((span, indices))
        return blocks

    def advance(self, to: int) -> None:
        """Run the dense model up to a segment on all batches."""
        if to > self.at:
            with torch.no_grad():
                rest = range(self.at, to)
                self.entries = [self.run(rest, self.program.weights, i, e) for i, e in enumerate(self.entries)]
            self.at = to

    def run(self, segments: range, weights: Weights, i: int, entry: Any) -> Any:
        """The exit value of segments that batch `i` enters with `entry`; of the last one, the outputs of the graph."""
        leaves = [node.name for node in self.program.graph.output_node().all_input_nodes]
        seen: dict[str, Any] = {}
        for segment in self.segments[segments.start : segments.stop]:
            loaded = load_weights(segment, self.program, weights)
            entry, new = run(segment, self.program, loaded, self.constants[i], entry, leaves)
            seen |= {name: value for name, value in new.items() if name in segment.names}
        return entry if segments.stop < len(self.segments) else seen


def _numbers(value: Any) -> Tensor:
    """All floating-point numbers of a value, one after the other."""
    leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return torch.cat([leaf.flatten() for leaf in leaves])


ALLOCATIONS.register("besa")(Besa(lambda knob: knob.groups[0].layer))
ALLOCATIONS.register("besa-global")(Besa(lambda knob: ""))
