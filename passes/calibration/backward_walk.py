"""Backward passes of a loss over all calibration batches, one segment of the graph at a time."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.display.progress import no_progress
from graphprune.execution.segments import Segment, Taps, split, split_at_linear_layers, to_device
from graphprune.ir.program import Program
from graphprune.passes.calibration.loss_of_outputs import Loss
from graphprune.statistics.collector import Calibration, matmul_autocast
from graphprune.statistics.stream import Stream
from graphprune.support.workspace import new_activations


@dataclass
class BackwardWalk:
    """The way back through the segments of a graph, from the last one, which computes all outputs, to the first.

    The forward pass stores the values that enter each segment. On the way back, each segment runs again on every batch,
    this time with derivatives, so that the activations of one segment and one batch are in memory. `taps` see the
    values of their nodes. `slopes` are the gradients at the exit of the last segment that is left, for each batch.
    """

    segments: Sequence[Segment]
    stream: Stream
    loss: Loss
    taps: Taps
    entries: list[Sequence[Any]] = field(default_factory=list)
    slopes: Sequence[Any] = ()

    @classmethod
    def start(cls, program: Program, calibration: Calibration, loss: Loss, taps: Taps, whole: bool) -> "BackwardWalk":
        """Walk at the inputs of the graph, in one segment if it is `whole`; every process runs all batches."""
        segments = split(program, frozenset()) if whole else split_at_linear_layers(program)
        stream = Stream.start(program, calibration, range(len(calibration.batches)))
        return cls(_with_all_outputs_last(program, segments), stream, loss, taps)

    def forward(self, count: int, step: Callable[..., None] = no_progress) -> None:
        """Store the values that enter the first `count` segments, of which the way back begins at the last."""
        self.entries.append(self.stream.entries)
        for segment in self.segments[: count - 1]:
            self.stream.entries = self.stream.advance(segment, self.stream.program.weights, step)
            self.entries.append(self.stream.entries)

    def back(
        self,
        step: Callable[..., None] = no_progress,
        names: Collection[str] = (),
        look: Callable[[Mapping[str, Tensor]], None] | None = None,
    ) -> Segment:
        """Go back through the last segment that is left, and return it.

        After each batch, `look` receives the weights of these `names`, which have gradients.
        """
        segment, entries = self.segments[len(self.entries) - 1], self.entries.pop()
        loaded = self.stream.load(segment, self.stream.program.weights)
        differentiable = [name for name in names if name in loaded and loaded[name].is_floating_point()]
        watched = {name: loaded[name].detach().requires_grad_() for name in differentiable}
        slopes = new_activations()
        for i, entry in enumerate(entries):
            start = None if entry is None else to_device(entry, self.stream.calibration.device).detach()
            if start is not None and start.is_floating_point():
                start.requires_grad_()
            self._differentiate(i, segment, {**loaded, **watched}, start)
            if start is not None:
                slopes.append(torch.zeros_like(start) if start.grad is None else start.grad)
            if look is not None:
                look(watched)
            for weight in watched.values():
                weight.grad = None
            step()
        self.slopes = slopes
        return segment

    @torch.enable_grad()
    def _differentiate(self, i: int, segment: Segment, weights: Mapping[str, Tensor], entry: Tensor | None) -> None:
        """Run the backward pass of one batch through a segment."""
        calibration = self.stream.calibration
        outputs = () if segment.exit else [node.name for node in self._outputs]
        with matmul_autocast(calibration.autocast, calibration.device):
            root, seen = self.stream.run_from(entry, i, segment, weights, outputs, taps=self.taps)
            root = root if segment.exit else self.loss(self._output(seen), i)
            del seen
        if root.requires_grad:
            slope = to_device(self.slopes[i], calibration.device) if segment.exit else None
            torch.autograd.backward(root, slope)

    @property
    def _outputs(self) -> Sequence[fx.Node]:
        """Nodes of all outputs."""
        return self.stream.program.graph.output_node().all_input_nodes

    def _output(self, values: Mapping[str, Any]) -> Any:
        """Output of the traced module."""
        program = self.stream.program

        def value(node: fx.Node) -> Any:
            return program.tensor(program.name(str(node.target))) if node.op == "get_attr" else values[node.name]

        graph = program.graph
        return graph.process_outputs(pytree.tree_map_only(fx.Node, value, graph.output_node().args[0]))


def _with_all_outputs_last(program: Program, segments: list[Segment]) -> list[Segment]:
    """The segments, with those from the first output on as one."""
    outputs = {node.name for node in program.graph.output_node().all_input_nodes}
    first = next((i for i, segment in enumerate(segments) if not segment.names.isdisjoint(outputs)), len(segments) - 1)
    nodes = tuple(node for segment in segments[first:] for node in segment.nodes)
    return [*segments[:first], Segment(nodes, segments[first].entry, None)]
