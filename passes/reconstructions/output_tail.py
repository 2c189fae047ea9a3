"""The end of a causal language model, from its last norm on: it acts on every token alone."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.execution.segments import Segment, evaluate_node, split, to_device
from graphprune.ir.program import Program
from graphprune.solvers.new_biases import count_readers
from graphprune.statistics.collector import Calibration
from graphprune.statistics.stream import NOTHING, Stream

aten = torch.ops.aten
#: Operators of norms, with the number of parameters after their value and its shape.
NORMS: Mapping[Any, int] = {aten.layer_norm.default: 2, aten.rms_norm.default: 1}
ELEMENTWISE = (aten.mul.Tensor, aten.add.Tensor, aten.to.dtype, aten._to_copy.default, *NORMS)


@dataclass(frozen=True)
class OutputTail:
    """The part of a program from the norm before its last linear layer to its first output.

    `body` is what comes before. `parameters` are those of the norm: each is as wide as the value that enters, and has
    one reader.
    """

    program: Program
    body: tuple[Segment, ...]
    segment: Segment
    output: str
    parameters: tuple[str, ...]

    @classmethod
    def of(cls, program: Program, linear: Collection[str]) -> "OutputTail | None":
        """Tail of a program whose linear layers have these nodes; None if it has no such norm."""
        segments = split(program, frozenset(linear))
        at = max((i for i, part in enumerate(segments) if not part.names.isdisjoint(linear)), default=0)
        output = pytree.tree_leaves(program.graph.output_node().args)[0]
        if at == 0 or not isinstance(output, fx.Node):
            return None
        nodes = tuple(node for part in segments[at:] for node in part.nodes)
        segment = Segment(nodes, segments[at].entry, None).upstream_of({output.name})
        names = tuple(_norm_parameters(program, segment, linear))
        return cls(program, tuple(segments[:at]), segment, output.name, names) if names else None

    def start(self, calibration: Calibration, step: Callable[[], None]) -> "TailInputs":
        """Run the body on calibration batches; `step` is called after each batch of a segment."""
        stream = Stream.start(self.program, calibration)
        for segment in self.body:
            stream.entries = stream.advance(segment, self.program.weights, step)
        return TailInputs(self, stream, stream.load(self.segment, self.program.weights))


@dataclass(frozen=True)
class TailInputs:
    """The tail with its weights, and the values that enter it for the calibration batches of this process."""

    tail: OutputTail
    stream: Stream
    weights: Mapping[str, Tensor]

    def values(self) -> dict[str, Tensor]:
        """The parameters of the norm, shape (width,), by name."""
        return {name: self.weights[name] for name in self.tail.parameters}

    def rows(self, i: int, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters with a row of their own for each token of a batch, shape (tokens, width), which has a gradient."""
        shape = self.stream.entries[i].shape
        return {name: value.expand(shape).clone().requires_grad_() for name, value in values.items()}

    def logits(self, i: int, values: Mapping[str, Tensor] = NOTHING) -> Tensor:
        """Logits of all tokens of batch `i`, shape (tokens, vocabulary), without padding, in single precision.

        `values` replace the parameters of the norm.
        """
        stream, entry, program = self.stream, self.tail.segment.entry, self.tail.program
        known = stream.constants.of(stream.calibration.batches[stream.batch_indices[i]])
        assert entry is not None
        known[entry.name] = to_device(stream.entries[i], stream.calibration.device)
        weights = {**self.weights, **{name: value.to(self.weights[name].dtype) for name, value in values.items()}}
        for node in self.tail.segment.nodes:
            known[node.name] = _evaluated(node, known, lambda n: weights[program.name(str(n.target))])
        logits: Tensor = known[self.tail.output].float()
        real = stream.token_masks[i]
        return logits.flatten(0, -2) if real is None else logits[real.to(logits.device)]


def _norm_parameters(program: Program, segment: Segment, linear: Collection[str]) -> Iterator[str]:
    """Parameters that elementwise operators and norms read before a linear layer, as wide as the entry."""
    assert segment.entry is not None
    rank, width = segment.entry.meta["val"].dim(), segment.entry.meta["val"].shape[-1]
    readers, shapes = count_readers(program), program.shapes()
    for node in segment.nodes:
        shape = tuple(node.meta["val"].shape) if isinstance(node.meta["val"], Tensor) else ()
        if node.name in linear or (shape[-1:] == (width,) and len(shape) not in (1, rank)):  # rows are rearranged
            return
        read = [program.name(str(n.target)) for n in node.all_input_nodes if n.op == "get_attr"]
        for name in read if node.target in ELEMENTWISE else ():
            if name in program.parameters and shapes[name] == (width,) and readers[name] == 1:
                yield name


def _evaluated(node: fx.Node, values: Mapping[str, Any], attribute: Callable[[fx.Node], Any]) -> Any:
    """Value of a node; the parameters of a norm may have a row for each token, which its operator does not take."""
    if node.target not in NORMS:
        return evaluate_node(node, values, attribute)
    args = pytree.tree_map_only(fx.Node, lambda n: attribute(n) if n.op == "get_attr" else values[n.name], node.args)
    count, operator = NORMS[node.target], node.target
    own = args[2 : 2 + count]
    assert callable(operator)
    value = operator(*args[:2], *[None] * len(own), *args[2 + count :], **node.kwargs)
    weight, bias = (*own, None, None)[:2]
    value = value if weight is None else value * weight
    return value if bias is None else value + bias
