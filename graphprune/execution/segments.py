"""Segments: consecutive nodes of the graph between points where a single activation is live.

Values that depend on no parameter (masks, rotary tables) are constants, which are computed once per batch.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.axes.groups import Dependencies
from graphprune.ir.program import Program
from graphprune.ir.weights import Weights

CONSTANT_BYTES = 1 << 26  # bytes of cached constants; others are computed again for each segment


class Tap(Protocol):
    """Function that sees a value of the graph, and returns it, such as with a hook for its gradient."""

    @property
    def inputs(self) -> Sequence[str]:
        """Nodes whose values it reads, too."""

    def __call__(self, value: Tensor, values: Mapping[str, Any]) -> Tensor:
        """Return the value of its node; `values` has those of its inputs, by node."""


Taps = Mapping[str, Sequence[Tap]]  # by node
NO_TAPS: Taps = MappingProxyType({})


@dataclass(frozen=True)
class Segment:
    """Consecutive nodes that read one activation, `entry` (None for the first), and compute one, `exit`."""

    nodes: tuple[fx.Node, ...]
    entry: fx.Node | None
    exit: fx.Node | None

    @property
    def names(self) -> set[str]:
        """Names of its nodes."""
        return {node.name for node in self.nodes}

    def weights(self, program: Program) -> set[str]:
        """Stored names of the parameters and buffers that it reads."""
        return program.names(n for node in self.nodes for n in node.all_input_nodes)

    def upstream_of(self, names: Collection[str]) -> "Segment":
        """Part of the segment that the values of these nodes depend on."""
        nodes = {node.name: node for node in self.nodes}
        needed, stack = set[str](), list(names)
        while stack:
            node = nodes.get(stack.pop())
            if node is not None and node.name not in needed:
                needed.add(node.name)
                stack += [n.name for n in node.all_input_nodes]
        return Segment(tuple(node for node in self.nodes if node.name in needed), self.entry, None)

    def downstream_of(self, names: Collection[str]) -> "Segment":
        """Part of the segment with these nodes and all that depend on them."""
        dependent = set(names)
        for node in self.nodes:
            if any(n.name in dependent for n in node.all_input_nodes):
                dependent.add(node.name)
        return Segment(tuple(node for node in self.nodes if node.name in dependent), self.entry, self.exit)


def split(program: Program, busy: Collection[str]) -> list[Segment]:
    """Split the graph where a single activation is live, so that every segment except the last has a `busy` node."""
    active = activation_nodes(program)
    position = {node: i for i, node in enumerate(program.graph.nodes)}
    last_use = {node: max((position[user] for user in node.users), default=-1) for node in active}
    segments: list[Segment] = []
    run: list[fx.Node] = []
    live: set[fx.Node] = set()
    entry: fx.Node | None = None
    for node in (n for n in program.graph.nodes if n in active):
        run.append(node)
        live = {n for n in (*live, node) if last_use[n] > position[node]}
        exit = next(iter(live)) if len(live) == 1 else None
        if exit is not None and isinstance(exit.meta.get("val"), Tensor) and any(n.name in busy for n in run):
            segments.append(Segment(tuple(run), entry, exit))
            run, entry = [], exit
    return [*segments, Segment(tuple(run), entry, None)] if run else segments


def split_at_linear_layers(program: Program) -> list[Segment]:
    """Split the graph so that every segment except the last has a linear operator."""
    return split(program, {consumer.node for consumer in program.fact(Dependencies).consumers})


def activation_nodes(program: Program) -> set[fx.Node]:
    """Operator nodes whose values depend on a parameter."""
    active: set[fx.Node] = set()
    sources = {n for n in program.tensors() if program.name(str(n.target)) in program.parameters}
    for node in program.graph.nodes:
        if node.op == "call_function" and any(n in active or n in sources for n in node.all_input_nodes):
            active.add(node)
    return active


@dataclass
class Constants:
    """Values of inputs, and of all nodes that depend on no parameter.

    They are computed once for batches that agree in the inputs of those nodes, while they take at most `most` bytes.
    """

    program: Program
    most: int = CONSTANT_BYTES
    device: torch.device | str | None = None
    made: list[tuple[list[Any], dict[str, Any]]] = field(default_factory=list)

    def of(self, leaves: Sequence[Any]) -> dict[str, Any]:
        """Constants of a batch of input leaves, by name."""
        inputs = dict(zip(self._inputs, leaves, strict=True))
        read = [inputs[name] for name in self._read]
        constants = next((made for known, made in self.made if all(map(_same, known, read))), None)
        if constants is None:
            constants = self._evaluated(inputs)
            self.made.append((read, constants))
            while self.made and sum(_bytes(values) for _, values in self.made) > self.most:
                del self.made[0]
        return {name: to_device(inputs[name], self.device) for name in self._used.intersection(inputs)} | constants

    def _evaluated(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        values = dict(inputs)
        for node in self._nodes:
            values[node.name] = evaluate_node(node, values, lambda n: _buffer(self.program, n))
        return {node.name: to_device(values[node.name], self.device) for node in self._nodes if node.name in self._used}

    @cached_property
    def _inputs(self) -> list[str]:
        return [node.name for node in self.program.graph.nodes if node.op == "placeholder"]

    @cached_property
    def _nodes(self) -> list[fx.Node]:
        active = self._active
        return [node for node in self.program.graph.nodes if node.op == "call_function" and node not in active]

    @cached_property
    def _read(self) -> list[str]:
        """Names of the inputs that the nodes read."""
        read = {n.name for node in self._nodes for n in node.all_input_nodes}
        return [name for name in self._inputs if name in read]

    @cached_property
    def _used(self) -> set[str]:
        """Names of the values that the rest of the graph reads, and of outputs."""
        readers = (*self._active, self.program.graph.output_node())
        return {n.name for node in readers for n in node.all_input_nodes}

    @cached_property
    def _active(self) -> set[fx.Node]:
        return activation_nodes(self.program)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.dtype == b.dtype and torch.equal(a, b))
    return type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b)


def _bytes(values: Mapping[str, Any]) -> int:
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor))


def evaluate_node(node: fx.Node, values: Mapping[str, Any], attribute: Any) -> Any:
    """Value of one operator node."""

    def value(n: fx.Node) -> Any:
        return attribute(n) if n.op == "get_attr" else values[n.name]

    args, kwargs = pytree.tree_map_only(fx.Node, value, (node.args, node.kwargs))
    operator: Any = _copied if node.target is torch.ops.aten.copy.default else node.target
    return operator(*args, **kwargs)


def _copied(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """The source in the shape and type of the target; the operator for it has no derivative."""
    return source.to(target).expand_as(target).clone()


def to_device(value: Any, device: torch.device | str | None) -> Any:
    """Move a tensor to a device, if one is set; other values are returned unchanged."""
    return value.to(device=device, non_blocking=True) if isinstance(value, Tensor) else value


def load_weights(
    segment: Segment, program: Program, weights: Weights, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Weights that a segment reads, on a device if one is set."""
    names = (name for name in segment.weights(program) if name in weights)
    return {name: to_device(weights[name], device) for name in names}


def run(
    segment: Segment,
    program: Program,
    weights: Weights,
    known: Mapping[str, Any],
    entry: Any,
    watch: Collection[str] = (),
    taps: Taps = NO_TAPS,
) -> tuple[Any, dict[str, Any]]:
    """Run a segment on one batch; return its exit value, and the values of the nodes in `watch`.

    Each value passes through the `taps` of its node. Values are dropped after their last use, so that memory is bounded
    by live values.
    """
    values = dict(known)
    if segment.entry is not None:
        values[segment.entry.name] = entry
    seen = {name: values[name] for name in watch if name in values}
    uses = _last_uses(segment, taps)
    for i, node in enumerate(segment.nodes):
        value = evaluate_node(node, values, lambda n: weights[program.name(str(n.target))])
        for tap in taps.get(node.name, ()):
            value = tap(value, values)
        values[node.name] = value
        if node.name in watch:
            seen[node.name] = values[node.name]
        for name in uses.get(i, ()):
            values.pop(name, None)
    return (values[segment.exit.name] if segment.exit else None), seen


def _last_uses(segment: Segment, taps: Taps) -> dict[int, list[str]]:
    """Values by the index of the node of the segment that uses them last, or whose taps do."""
    last = dict[str, int]()
    for i, node in enumerate(segment.nodes):
        tapped = (name for tap in taps.get(node.name, ()) for name in tap.inputs)
        last |= dict.fromkeys((*(n.name for n in node.all_input_nodes), *tapped), i)
    by_index: dict[int, list[str]] = {}
    for name, i in last.items():
        if segment.exit is None or name != segment.exit.name:
            by_index.setdefault(i, []).append(name)
    return by_index


def _buffer(program: Program, node: fx.Node) -> Any:
    name = program.name(str(node.target))
    return program.weights[name] if name in program.weights else program.submodules[name]
