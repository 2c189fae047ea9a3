"""Backward passes of a loss over all calibration batches, one segment of the graph at a time."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.display.progress import no_progress
from graphprune.execution.segments import Segment, last_uses, split, split_at_linear_layers, to_device
from graphprune.ir.program import Program
from graphprune.passes.calibration.loss_of_outputs import Loss
from graphprune.statistics.collector import Calibration, matmul_autocast
from graphprune.statistics.stream import Stream
from graphprune.support.workspace import new_activations

aten = torch.ops.aten


class Tap(Protocol):
    """Function that sees a value of the graph in a backward pass, and returns it with hooks for its gradient."""

    @property
    def inputs(self) -> Sequence[str]:
        """Nodes whose values it reads, too."""

    def __call__(self, value: Tensor, values: Mapping[str, Any]) -> Tensor:
        """Return the value of its node; `values` has those of its inputs, by node."""


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
    taps: Mapping[str, Sequence[Tap]]
    entries: list[Sequence[Any]] = field(default_factory=list)
    slopes: Sequence[Any] = ()

    @classmethod
    def start(
        cls, program: Program, calibration: Calibration, loss: Loss, taps: Mapping[str, Sequence[Tap]], whole: bool
    ) -> "BackwardWalk":
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
        with matmul_autocast(calibration.autocast, calibration.device):
            values = self._values(i, segment, weights, entry)
            root = values[segment.exit.name] if segment.exit else self.loss(self._output(values), i)
            del values
        if root.requires_grad:
            slope = to_device(self.slopes[i], calibration.device) if segment.exit else None
            torch.autograd.backward(root, slope)

    def _values(self, i: int, segment: Segment, weights: Mapping[str, Tensor], entry: Tensor | None) -> dict[str, Any]:
        """The exit of a segment for one batch, or all outputs, by name."""
        program, uses = self.stream.program, self._last_uses(segment)
        values = self.stream.constants.of(self.stream.calibration.batches[i])
        if segment.entry is not None:
            values[segment.entry.name] = entry
        for at, node in enumerate(segment.nodes):
            args, kwargs = pytree.tree_map_only(
                fx.Node,
                lambda n: weights[program.name(str(n.target))] if n.op == "get_attr" else values[n.name],
                (node.args, node.kwargs),
            )
            value = _operator(node)(*args, **kwargs)
            for tap in self.taps.get(node.name, ()):
                value = tap(value, values)
            values[node.name] = value
            for name in uses.get(at, ()):
                values.pop(name, None)
        return values

    def _last_uses(self, segment: Segment) -> dict[int, list[str]]:
        """Values by the index of the node after which nothing of the backward pass reads them."""
        inputs = {node: [name for tap in taps for name in tap.inputs] for node, taps in self.taps.items()}
        outputs = {node.name for node in self.stream.program.graph.output_node().all_input_nodes}
        uses = last_uses(segment, inputs)
        return {i: [name for name in names if name not in outputs] for i, names in uses.items()}

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


def _operator(node: fx.Node) -> Callable[..., Any]:
    """Operator of a node, in a form that has a derivative."""
    operator: Any = _copied if node.target is aten.copy.default else node.target
    return operator  # type: ignore[no-any-return]


def _copied(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """The source in the shape and type of the target; the operator for it has no derivative."""
    return source.to(target.dtype).expand_as(target).clone()
