"""The pass that rotates residual streams to their principal axes."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.axes.groups import Dependencies, Group
from graphprune.errors import CalibrationError
from graphprune.execution.equivalence import verify_cut
from graphprune.execution.output_comparison import Verification
from graphprune.ir.program import Program, Rotatable
from graphprune.passes.rotation.fuse_norms import rotated
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Eligible, Scores
from graphprune.planning.plan import ROTATION
from graphprune.statistics.moments import FullMoments, Statistics


@PASSES.register("rotate")
@dataclass(frozen=True)
class Rotate(Pass):
    """Rotate every residual stream to the principal axes of its normalized values, the largest first (SliceGPT,
    arXiv:2401.15024, section 3.3), and score each axis by its eigenvalue. The outputs of the model do not change.

    The statistics are those of the dense model; the paper takes those of the sliced prefix.
    """

    name: ClassVar[str] = "rotate"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible, Rotatable, Statistics, FullMoments)
    makes: ClassVar[tuple[type, ...]] = (Scores, Verification)

    def run(self, program: Program) -> Program:
        """The program with rotated streams and their scores.

        Raises:
            CalibrationError: if there are no full Gram matrices of a stream.
            VerificationError: if the rotated program has other outputs.
        """
        rotations, scores = {}, {}
        for group in program.fact(Eligible).groups:
            values, vectors = torch.linalg.eigh(_gram(program, group))
            rotations[group.prime], scores[group.name] = vectors.flip(1), values.flip(0)[None]
        small = rotated(program, rotations)
        return small.with_facts(Scores(scores, ROTATION), verify_cut(program, small, {}, rounded=True))


def _gram(program: Program, group: Group) -> Tensor:
    """The sum of the Gram matrices of the values that consumers of a stream read, without those of shortcuts."""
    statistics, fact = program.fact(Statistics).moments, program.fact(Rotatable)
    consumers = program.fact(Dependencies).consumers_of(group)
    consumers = [c for c in consumers if c.weight not in fact.shortcuts] or consumers
    grams = {c.x: statistics[c.node].gram for c in consumers if c.node in statistics}
    if not grams or any(gram.dim() < 2 for gram in grams.values()):
        raise CalibrationError(f"there are no full moments of the stream {group.name}; calibrate with moments=full")
    return torch.stack(list(grams.values())).sum(0)
