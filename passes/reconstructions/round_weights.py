"""The pass that rounds weights to blocks of 4 bits after a cut, so that a quantized export loses less."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from graphprune.axes.groups import Dependencies
from graphprune.axes.rule import Consumer
from graphprune.display.progress import progress
from graphprune.errors import PlanError, choices
from graphprune.execution.segments import split
from graphprune.ir.program import Program
from graphprune.ir.weights import Layered
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Refits, RoundedWeights, with_tuned
from graphprune.solvers.block_rounding import BLOCK, FORMATS, compensated, inverse_root, output_change, to_nearest
from graphprune.solvers.factorable import factorable
from graphprune.statistics.collector import Calibration, Collector
from graphprune.statistics.stream import Stream

log = logging.getLogger(__name__)


@PASSES.register("round-weights")
@dataclass(frozen=True)
class RoundWeights(Pass):
    """Round the weights of linear layers to the blocks of a 4-bit format, one layer after the other (GPTQ,
    arXiv:2210.17323).

    `to` is the format: ``int4``, which ``graphprune export --quant int4`` stores in ONNX, or ``q4_0``, which it stores
    in GGUF. A layer is rounded for the inputs that the rounded layers before it give, scaled to norm 1, so that the few
    tokens with huge inputs count no more than others. The weights remain floating-point numbers, and the export stores
    these very numbers. The layer that makes the outputs, embeddings, and shared weights are not rounded.
    """

    name: ClassVar[str] = "round-weights"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Calibration)
    reads: ClassVar[tuple[type, ...]] = (Refits,)
    makes: ClassVar[tuple[type, ...]] = (Refits, RoundedWeights)
    to: str = "int4"

    def check(self) -> None:
        """Refuse an unknown format.

        Raises:
            PlanError: if the format is unknown.
        """
        if self.to not in FORMATS:
            raise PlanError(f"weights cannot be rounded to {self.to!r}; {choices(self.to, FORMATS)}")

    def run(self, program: Program) -> Program:
        """The program with rounded weights.

        Raises:
            CalibrationError: if activations are not finite.
        """
        layers, left = self._layers(program)
        rounded, changes = _rounded(program, layers, self.to)
        fact = RoundedWeights(self.to, changes, left)
        log.info("%s", "; ".join(fact.notes()))
        return with_tuned(program, rounded).with_facts(fact)

    def _layers(self, program: Program) -> tuple[list[Consumer], dict[str, str]]:
        """The layers to round, and the weights of others with the reason."""
        layers, left = factorable(program, program.fact(Dependencies))
        odd = {c.weight for c in layers if program.shapes()[c.weight][c.dim] % BLOCK} if self.to == "q4_0" else set()
        left |= dict.fromkeys(sorted(odd), f"its rows are no multiples of {BLOCK}, and stay in half precision")
        return [layer for layer in layers if layer.weight not in odd], left


def _rounded(
    program: Program, layers: Sequence[Consumer], to: str
) -> tuple[dict[str, Tensor], dict[str, tuple[float, float]]]:
    """New weights by name, and the relative changes of outputs: by compensation, and by rounding to nearest."""
    changed, changes = dict[str, Tensor](), dict[str, tuple[float, float]]()
    segments = split(program, {layer.node for layer in layers})
    stream, weights = Stream.start(program, program.fact(Calibration)), Layered((changed, program.weights))
    with progress("rounding", 2 * len(segments) * len(stream.batch_indices)) as step:
        for segment in segments:
            inside = [layer for layer in layers if layer.node in segment.names]
            collector = Collector(inside, normalized=True)
            stream.advance(segment, weights, step, [collector] * len(stream.batch_indices))
            collector.all_reduce()
            for readers in _by_input(inside, collector):
                gram = collector.moments[readers[0].key].gram.cpu()
                upper = inverse_root(gram)
                for layer in readers:
                    name = layer.weight
                    changed[name], changes[name] = _layer(program, layer, gram, upper, to)
            if segment.exit is not None:
                stream.entries = stream.advance(segment, weights, step)
    return changed, changes


def _by_input(layers: Sequence[Consumer], collector: Collector) -> list[list[Consumer]]:
    """The layers, those together that read one value and so share its moments."""
    shared: dict[int, list[Consumer]] = {}
    for layer in layers:
        shared.setdefault(id(collector.moments[layer.key]), []).append(layer)
    return list(shared.values())


def _layer(
    program: Program, layer: Consumer, gram: Tensor, upper: Tensor, to: str
) -> tuple[Tensor, tuple[float, float]]:
    matrix = layer.matrix(program.weights[layer.weight])
    new = compensated(matrix, upper, FORMATS[to])
    nearest = to_nearest(matrix, FORMATS[to])
    changes = output_change(matrix, new, gram), output_change(matrix, nearest, gram)
    return layer.restore(new).contiguous(), changes
