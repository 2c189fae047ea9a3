"""The pass that recomputes the running statistics of batch norms after a cut."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, fx

from graphprune.display.progress import progress
from graphprune.errors import CalibrationError
from graphprune.execution.segments import Segment, split
from graphprune.ir.program import Program, Rewritten
from graphprune.ir.weights import Layered
from graphprune.passes.operators import RULES
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Refits, with_tuned
from graphprune.statistics.collector import Calibration
from graphprune.statistics.moments import Moments
from graphprune.statistics.stream import Stream


@dataclass(frozen=True)
class RunningNorm:
    """A norm with running statistics: its node, the node of its input, and the names of its mean and variance."""

    node: str
    x: str
    mean: str
    variance: str


@PASSES.register("batch-norm-statistics")
@dataclass(frozen=True)
class Norms(Pass):
    """Give batch norms the mean and variance of their inputs over all calibration batches.

    A cut changes the inputs of a norm, while its running statistics are those of the dense model. The norms are
    measured one after the other, each with the new statistics of those before it, so that the result does not depend on
    the division of inputs into batches. After EagleEye's adaptive batch normalization (arXiv:2007.02491, section 3.3),
    which takes a moving average of the statistics of single batches instead. A model without such norms is unchanged.
    """

    name: ClassVar[str] = "batch-norm-statistics"
    memory_bounded: ClassVar[bool] = True
    needs: ClassVar[tuple[type, ...]] = (Rewritten, Calibration)
    reads: ClassVar[tuple[type, ...]] = (Refits,)
    makes: ClassVar[tuple[type, ...]] = (Refits,)

    def run(self, program: Program) -> Program:
        """The program with new statistics.

        Raises:
            CalibrationError: if activations are not finite.
        """
        norms = list(norms_of(program))
        uses = Counter(name for norm in norms for name in (norm.mean, norm.variance))
        unshared = [norm for norm in norms if uses[norm.mean] == uses[norm.variance] == 1]
        changed = _measured(program, unshared)
        shared = {norm.mean: "several layers share it" for norm in norms if norm not in unshared}
        return with_tuned(program, changed, shared)


def norms_of(program: Program) -> Iterator[RunningNorm]:
    """All norms with running statistics, in the order of execution."""
    for node in program.graph.nodes:
        rule = RULES.get(node.target) if node.op == "call_function" else None
        running = rule.running_statistics(node) if rule else None
        if running and all(isinstance(value, fx.Node) and value.op == "get_attr" for value in running):
            names = [program.name(str(value.target)) for value in running if isinstance(value, fx.Node)]
            yield RunningNorm(node.name, node.args[0].name, *names)


def _measured(program: Program, norms: Sequence[RunningNorm]) -> dict[str, Tensor]:
    """New means and variances by name, each of shape (channels,)."""
    changed: dict[str, Tensor] = {}
    if not norms:
        return changed
    segments = split(program, {norm.node for norm in norms})
    stream = Stream.start(program, program.fact(Calibration))
    weights = Layered((changed, program.weights))
    with progress("measuring norms", len(norms) * len(stream.batch_indices)) as step:
        for segment in segments:
            for norm in (norm for norm in norms if norm.node in segment.names):
                moments = _moments(stream, segment.upstream_of({norm.x}), norm, weights)
                mean, variance = moments.mean, moments.squares / moments.tokens - moments.mean.square()
                unbiased = variance.clamp(min=0) * moments.tokens / max(moments.tokens - 1, 1)
                for name, value in ((norm.mean, mean), (norm.variance, unbiased)):
                    changed[name] = value.to(program.weights[name].dtype)
                step(len(stream.batch_indices))
            if segment.exit is not None:
                stream.entries = stream.advance(segment, weights)
    return changed


def _moments(stream: Stream, part: Segment, norm: RunningNorm, weights: Layered) -> Moments:
    """The moments of the channels of a norm's input, over all batches and positions."""
    loaded = stream.load(part, weights)
    total = Moments.empty(weights[norm.mean].shape[0], diagonal=True)
    for batch in range(len(stream.batch_indices)):
        _, seen = stream.run_batch(batch, part, loaded, {norm.x})
        total.add(seen[norm.x].movedim(1, -1).flatten(0, -2))
    if not total.squares.isfinite().all():
        raise CalibrationError(
            f"the activations at {norm.x} hold NaN or infinity; check the model and the calibration data"
        )
    return total
