"""Magnitude of the coupled weights, and random scores as a baseline."""

import zlib

import torch
from torch import Tensor

from graphprune.axes.groups import Group
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import at_places, rows_of
from graphprune.planning.interfaces import Evidence, ScoreMethod


class Magnitude(ScoreMethod):
    """L2 norm of all weights at an index, over every parameter of the group."""

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        weights = evidence.program.weights
        places = at_places(group, evidence, lambda name: weights[name].abs().double().square())
        return torch.stack(places).sum(0).sqrt()


class Random(ScoreMethod):
    """Uniform noise, reproducible by seed and group."""

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """Score of every index, shape (rows, group.size)."""
        seed = zlib.crc32(f"{evidence.seed}:{group.name}".encode())
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(rows_of(group, evidence.dependencies), group.size, generator=generator, dtype=torch.float64)


SCORES.register("magnitude")(Magnitude())
SCORES.register("random")(Random())
