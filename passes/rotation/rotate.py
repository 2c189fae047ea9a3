"""The pass that turns residual streams to their principal axes."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.axes.groups import Dependencies, Group
from graphprune.errors import CalibrationError
from graphprune.execution.equivalence import Verification, verify_cut
from graphprune.ir.program import Program, Rotatable
from graphprune.passes.rotation.fuse_norms import turned
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Eligible, Scores
from graphprune.planning.plan import ROTATION
from graphprune.statistics.moments import FullMoments, Statistics


@PASSES.register("rotate")
@dataclass(frozen=True)
class Rotate(Pass):
    """Turn every stream to the principal axes of what its norms make of it, the largest first (SliceGPT,
    arXiv:2401.15024, section 3.3), and score them by how much lies along each. What the model computes stays.

    The statistics are those of the dense model, where the paper takes those of the sliced prefix.
    """

    name: ClassVar[str] = "rotate"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible, Rotatable, Statistics, FullMoments)
    makes: ClassVar[tuple[type, ...]] = (Scores, Verification)

    def run(self, program: Program) -> Program:
        """The program with rotated streams and their scores.

        Raises:
            CalibrationError: if there are no full moments of a stream.
            VerificationError: if the rotated program computes something else.
        """
        turns, scores = {}, {}
        for group in program.fact(Eligible).groups:
            values, vectors = torch.linalg.eigh(_second(program, group))
            turns[group.prime], scores[group.name] = vectors.flip(1), values.flip(0)[None]
        small = turned(program, turns)
        return small.with_facts(Scores(scores, ROTATION), verify_cut(program, small, {}))


def _second(program: Program, group: Group) -> Tensor:
    """The second moments of all that linear maps read of a stream, once for each value; those of shortcuts aside."""
    statistics, fact = program.fact(Statistics).moments, program.fact(Rotatable)
    maps = program.fact(Dependencies).consumers_of(group)
    read = [c for c in maps if c.weight not in fact.shortcuts] or maps
    found = {c.x: statistics[c.node].gram for c in read if c.node in statistics}
    if not found or any(second.dim() < 2 for second in found.values()):
        raise CalibrationError(f"there are no full moments of the stream {group.name}; calibrate with moments=full")
    return torch.stack(list(found.values())).sum(0)
