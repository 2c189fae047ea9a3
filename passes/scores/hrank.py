"""HRank (arXiv:2002.10179): the mean rank of the feature maps of a channel over calibration inputs.

Feature maps are read where a linear layer contracts them, thus after norms and activation functions. A map of height
and width is a matrix; so are the values of a head, with tokens as rows. The paper orders channels by rank alone; equal
ranks, as where all maps have the full one, are ordered by the effective rank, the exponential of the entropy of the
normalized singular values.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx

from graphprune.axes.algebra import Axis, primes
from graphprune.axes.groups import Dependencies, Group
from graphprune.display.progress import progress
from graphprune.execution.segments import Constants, run, split
from graphprune.ir.program import Program
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import positions
from graphprune.planning.interfaces import Evidence, ScoreMethod
from graphprune.statistics.collector import Calibration

IMAGES = 64  # of the calibration inputs; the paper reads 500 and finds ranks that hardly depend on the inputs
TIE = 1e-6  # weight of the effective rank

_known: WeakKeyDictionary[fx.Graph, tuple[Calibration, Mapping[str, Tensor]]] = WeakKeyDictionary()


class FeatureMapRank(ScoreMethod):
    """Mean rank of the matrices of an index, over inputs and the layers that read it."""

    runs_inputs = True

    def scored(self, program: Program, groups: Sequence[Group]) -> tuple[Group, ...]:
        """Groups whose values are matrices."""
        dependencies = program.fact(Dependencies)
        return tuple(group for group in groups if any(maps_of(group, dependencies)))

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        program, calibration = evidence.program, evidence.program.fact(Calibration)
        known = _known.get(program.graph)
        if known is None or known[0] is not calibration:
            known = _known[program.graph] = calibration, _measured(program, calibration)
        return known[1][group.name]


def maps_of(group: Group, dependencies: Dependencies) -> Iterator[tuple[str, int, Axis]]:
    """Values that hold a matrix for every index of a group: their nodes, and the dimension and axis with the group."""
    for x in dict.fromkeys(consumer.x for consumer in dependencies.consumers_of(group)):
        dims = dependencies.values[x]
        at = next((i for i, axis in enumerate(dims) if not isinstance(axis, tuple) and group.prime in primes(axis)), 0)
        if not at or isinstance(dims, list):
            continue
        linked = dependencies.by_name[group.linked].prime if group.linked else None
        if (linked is None or linked in primes(dims[at])) and (len(dims) > 3 or (len(dims) == 3 and group.inner > 1)):
            yield x, at, dims[at]


def ranks(values: Tensor, at: int, places: Tensor) -> Tensor:
    """Ranks of the matrices of every index, shape (samples, rows, size), of `values` whose dimension `at` has them.

    `places` are the positions of every index, shape (rows, size, count).
    """
    spatial = values.movedim(at, -1)[..., places]  # samples, height, ..., rows, size, count
    matrices = spatial.movedim((-3, -2), (1, 2)).flatten(4).double()
    singular = torch.linalg.svdvals(matrices)
    most = singular[..., :1]
    limit = most * max(matrices.shape[-2:]) * torch.finfo(values.dtype).eps
    shares = singular / singular.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    entropy = -(shares * shares.clamp(min=1e-300).log()).sum(-1)
    ranked: Tensor = (singular > limit).sum(-1) + TIE * entropy.exp() / singular.shape[-1]
    return ranked.where(most[..., 0] > 0, 0.0)


@torch.no_grad()
def _measured(program: Program, calibration: Calibration) -> dict[str, Tensor]:
    """Mean ranks of all groups whose values are matrices."""
    dependencies = program.fact(Dependencies)
    maps = {group.name: list(maps_of(group, dependencies)) for group in dependencies.groups}
    places = {name: {x: positions(axis, dependencies.by_name[name], dependencies) for x, _, axis in found}
              for name, found in maps.items()}  # fmt: skip
    (whole,), made = split(program, frozenset()), Constants(program)
    totals, samples = dict[str, Tensor](), 0
    with progress("measuring ranks", len(calibration.batches)) as step:
        for leaves in calibration.batches:
            known: dict[str, Any] = made.of(leaves)
            _, seen = run(whole, program, program.weights, known, None, {x for f in maps.values() for x, _, _ in f})
            for name, found in maps.items():
                for x, at, _ in found:
                    of_map = ranks(seen[x][: IMAGES - samples], at, places[name][x]).sum(0) / len(found)
                    totals[name] = totals.get(name, torch.zeros((), dtype=torch.float64)) + of_map
            samples += min(IMAGES - samples, max((len(value) for value in seen.values()), default=0))
            step()
            if samples >= IMAGES:
                break
    return {name: total / max(samples, 1) for name, total in totals.items()}


SCORES.register("hrank")(FeatureMapRank())
