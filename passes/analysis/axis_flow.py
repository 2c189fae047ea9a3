"""Flow of axes through the graph: the rule of every operator is applied once, in order."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, fx

from graphprune.axes import algebra
from graphprune.axes.algebra import Axis, Misaligned, prime, primes, resolve
from graphprune.axes.explanations import Reason
from graphprune.axes.rule import Consumer, Dims, Rule
from graphprune.axes.rule_helpers import DYNAMIC, size_hint
from graphprune.errors import AnalysisError, because
from graphprune.ir.leaf_names import matches_any, output_names
from graphprune.ir.printer import neighborhood
from graphprune.ir.program import Program
from graphprune.passes.analysis.index_values import Pointers
from graphprune.passes.analysis.row_partitions import RowPartitions
from graphprune.passes.operators import RULES

aten = torch.ops.aten
VIEWS = {aten.expand.default, aten.reshape.default, aten.clone.default, aten.unsqueeze.default, aten.slice.Tensor}


@dataclass(frozen=True)
class Cached:
    """Keys or values before they are repeated for grouped queries: their axes, and bytes per token."""

    axes: Dims
    bytes_per_token: int

    @classmethod
    def of(cls, flow: "AxisFlow", value: fx.Node) -> "Cached":
        """Follow a value back through views and repeats to the smallest value."""
        smallest, node = value, value
        while node.target in VIEWS and isinstance(node.args[0], fx.Node):
            node = node.args[0]
            smallest = node if flow.size(node) < flow.size(smallest) else smallest
        val = smallest.meta["val"]
        return cls(flow.dims(smallest), prod(n for n in val.shape if isinstance(n, int)) * val.element_size())


@dataclass
class AxisFlow:
    """The state of one analysis; rules see it as `axes.rule.Flow`."""

    program: Program
    values: dict[fx.Node, Dims | list[Dims] | None] = field(default_factory=dict)
    tensors: dict[str, Dims] = field(default_factory=dict)
    consumers: list[Consumer] = field(default_factory=list)
    members: list[Consumer] = field(default_factory=list)
    inexact: list[tuple[Axis, str]] = field(default_factory=list)
    averaged: list[tuple[Axis, str]] = field(default_factory=list)
    mixed: list[tuple[list[Axis], list[Axis]]] = field(default_factory=list)
    contractions: list[tuple[Axis, tuple[object, ...], fx.Node]] = field(default_factory=list)
    multiplied: list[tuple[fx.Node, Dims]] = field(default_factory=list)
    roles: dict[tuple[str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    keys_and_values: list[object] = field(default_factory=list)
    summed: list[tuple[fx.Node | None, Axis]] = field(default_factory=list)
    leasts: list[tuple[Axis, int, int]] = field(default_factory=list)
    pointers: Pointers = field(default_factory=Pointers)
    row_partitions: RowPartitions = field(default_factory=RowPartitions)
    opaque: Counter[str] = field(default_factory=Counter)
    because: dict[str, Reason] = field(default_factory=dict)
    node: fx.Node | None = None

    def run(self) -> "AxisFlow":
        """Apply the rules of all nodes, in order; all axes are in their final form afterwards."""
        for node in self.program.graph.nodes:
            self.node = node
            self.values[node] = self._visit(node)
            self.row_partitions.follow(node, RULES.get(node.target), self.outputs)
        self.values = {node: _resolved(value) for node, value in self.values.items()}
        self.tensors = {name: tuple(map(resolve, dims)) for name, dims in self.tensors.items()}
        return self

    def dims(self, value: object) -> Dims:
        """Axes of a value, one per dimension; none of a literal."""
        dims = self.values.get(value) if isinstance(value, fx.Node) else None
        return dims if dims is not None else ()  # type: ignore[return-value]

    def outputs(self, node: fx.Node) -> list[Dims]:
        """Axes of every output of a node."""
        dims = self.values.get(node)
        return dims if isinstance(dims, list) else [dims] if dims is not None else []

    def flat(self, node: fx.Node) -> list[Axis]:
        """Axes of all outputs of a node in one list."""
        return algebra.flatten_outputs(self.values.get(node) or ())

    def fresh(self, node: fx.Node, pins: str = "") -> Dims:
        """New axes in the shape of a node's value; symbolic sizes are pinned."""
        return self._fresh(node.meta["val"], pins)

    def unify(self, a: Axis, b: Axis) -> None:
        """Make two axes one."""
        try:
            algebra.align(a, b)
        except Misaligned as fault:
            for axis in (a, b):
                self.pin(axis, f"shapes cannot be aligned: {fault}")

    def pin(self, axis: Axis, why: str) -> None:
        """Forbid a cut of the axis."""
        if any(len(p.pins) < algebra.MAX_REASONS for p in primes(axis)):
            algebra.pin(axis, self._reason(why))

    def mark_inexact(self, axis: Axis, why: str) -> None:
        """Note that a cut of the axis changes the remaining values."""
        self.inexact.append((axis, self._reason(why)))

    def average(self, axis: Axis, operand: object) -> None:
        """Note a mean: a cut of the axis multiplies the result by a constant factor."""
        self.averaged.append((axis, self._reason("it is averaged here")))
        self.contract(axis, operand)

    def share_selection(self, inner: Iterable[Axis], outer: Iterable[Axis]) -> None:
        """Note that all indices of `outer` must retain the same indices of `inner`."""
        self.mixed.append((list(inner), list(outer)))

    def require_width(self, axis: Axis, least: int, multiple: int = 1) -> None:
        """Note the least number of indices that must be retained, and the number of which it is a multiple."""
        self.leasts.append((axis, least, multiple))

    def element_size(self, value: fx.Node) -> int:
        """Bytes of an element of a value, in the type in which the weights are stored, if that is smaller."""
        own: int = value.meta["val"].element_size()
        return min(own, self.program.source.dtype.itemsize) if self.program.source else own

    def mark_indices(self, value: fx.Node, axis: Axis, output: int = 0) -> None:
        """Note that a value holds indices into an axis."""
        self.pointers.mark(value, output, axis)

    def look_up(self, axis: Axis, index: object) -> None:
        """Unify an axis with the one that its index points into."""
        pointed = self.pointers.of(index)
        if pointed is None:
            self.pin(axis, "a tensor indexes it")
        else:
            self.unify(axis, pointed)

    def partition_rows(self, value: fx.Node, axis: Axis, offsets: object) -> None:
        """Note that the rows of a value are partitioned over an axis by offsets."""
        self.row_partitions.add(value, axis, offsets)

    def has_row_partition(self, value: object, offsets: object) -> bool:
        """Whether the rows of a value are partitioned by these offsets."""
        return self.row_partitions.holds(value, offsets)

    def contract(self, axis: Axis, *operands: object) -> None:
        """Note a sum over an axis."""
        self.summed.append((self.node, axis))
        assert self.node is not None  # rules report only while their node is visited
        self.contractions.append((axis, operands, self.node))

    def count_macs(self, *axes: Axis) -> None:
        """Note a product of the node, with an axis for every factor of its multiply-accumulates."""
        assert self.node is not None
        self.multiplied.append((self.node, axes))

    def consume(self, consumer: Consumer) -> None:
        """Note that a parameter contracts an axis, and produces its other ones."""
        if consumer.member is not None:
            self.members.append(consumer)
            return
        self.consumers.append(consumer)
        for dim in range(len(self.tensors[consumer.weight])):
            self.roles[consumer.weight, dim].add("contracted" if dim == consumer.dim else "produced")

    def cache_kv(self, *values: object) -> None:
        """Note keys and values, which a language model stores for every token."""
        self.keys_and_values += values

    def produce(self, parameter: object, dim: int) -> None:
        """Note that a parameter produces an axis."""
        if source := self.parameter_of(parameter):
            self.roles[source[0], source[1][dim]].add("produced")

    def parameter_of(self, value: object) -> tuple[str, tuple[int, ...]] | None:
        """The parameter behind a value that is only a transposed view of it."""
        orders = []
        while isinstance(value, fx.Node) and value.op != "get_attr":
            rule = RULES.get(value.target)
            order = rule.permutation(value, len(self.dims(value))) if rule else None
            if not order:
                return None
            orders.append(order)
            value = value.args[0]
        name = self.program.name(str(value.target)) if isinstance(value, fx.Node) else ""
        if name not in self.program.parameters:
            return None
        dims = tuple(range(len(self.tensors[name])))
        for order in reversed(orders):
            dims = tuple(dims[i] for i in order)
        return name, dims

    def size(self, node: fx.Node) -> int:
        """Number of elements of a value."""
        return prod(axis.size for axis in self.dims(node))

    def numel(self, name: str) -> int:
        """Number of elements of a parameter."""
        return prod(axis.size for axis in self.tensors[name])

    def cached(self) -> list["Cached"]:
        """Keys and values of every attention, as a cache stores them."""
        return [Cached.of(self, value) for value in self.keys_and_values if isinstance(value, fx.Node)]

    def _visit(self, node: fx.Node) -> Dims | list[Dims] | None:
        if node.op == "placeholder":
            return self._input(node)
        if node.op == "get_attr":
            return self._tensor(node)
        if node.op == "output":
            self._output(node)
            return None
        return self._call(node)

    def _input(self, node: fx.Node) -> Dims | None:
        val = node.meta.get("val")
        return (
            self._fresh(val, "" if matches_any([node.name], self.program.state) else "it is an input")
            if isinstance(val, Tensor)
            else None
        )

    def _tensor(self, node: fx.Node) -> Dims | None:
        if not isinstance(node.meta.get("val"), Tensor):
            return None
        name = self.program.name(str(node.target))
        if name not in self.tensors:
            self.tensors[name] = self._fresh(node.meta["val"], "")
            for dim, why in self.program.fixed.get(name, {}).items():
                self.pin(self.tensors[name][dim], why)
        return self.tensors[name]

    def _output(self, node: fx.Node) -> None:
        leaves = torch.utils._pytree.tree_leaves(node.args[0])
        for leaf, names in zip(leaves, output_names(self.program.graph), strict=True):
            for axis in self.flat(leaf) if isinstance(leaf, fx.Node) else ():
                if not matches_any(names, self.program.state):
                    self.pin(axis, "it is an output")
        self._follow(node, None)

    def _call(self, node: fx.Node) -> Dims | list[Dims] | None:
        val = node.meta.get("val")
        if not isinstance(val, (Tensor, list, tuple)):
            self._follow(node, None)
            return None
        if node.target not in RULES:
            self.opaque[str(node.target)] += 1
            return self._opaque(node, f"{node.target} has no rule")
        if _has_only_scalars(node):  # torch lets them have a dimension 0, here they have none
            return self._opaque(node, "")
        try:
            result = RULES[node.target].axes(self, node)
        except Misaligned as fault:
            return self._opaque(node, str(fault))
        except Exception as fault:  # a call that the rule does not cover counts as an operator without one
            why = f"{node.target} is called in a way that its rule does not cover{because(fault)}"
            self.opaque[why] += 1
            return self._opaque(node, why)
        self._check(node, result)
        self._follow(node, RULES[node.target])
        return result

    def _follow(self, node: fx.Node, rule: Rule | None) -> None:
        """Propagate index values; pin the axes whose indices are used otherwise than by being moved."""
        for axis in self.pointers.follow(node, rule):
            self.pin(axis, "its index values are used in a computation")

    def _check(self, node: fx.Node, result: Dims | list[Dims] | None) -> None:
        """Check that the axes of a rule have the sizes of the value.

        Raises:
            AnalysisError: if they do not: the rule is wrong.
        """
        val = node.meta["val"]
        pairs = zip(result, val, strict=True) if isinstance(result, list) else [(result or (), val)]
        for dims, tensor in pairs:
            got, expected = [axis.size for axis in dims], [size_hint(size) for size in tensor.shape]
            if got != expected and not (isinstance(result, list) and not dims):
                raise AnalysisError(
                    f"the rule of {node.target} gives shape {got} at {self._location()}, expected {expected}\n"
                    f"{neighborhood(node)}\nPlease report it."
                )

    def _opaque(self, node: fx.Node, why: str) -> Dims | list[Dims]:
        """Pin all axes of the inputs and outputs of a node."""
        for value in node.all_input_nodes:
            for axis in self.flat(value):
                self.pin(axis, why)
        self._follow(node, None)
        val = node.meta["val"]
        if isinstance(val, Tensor):
            return self._fresh(val, why)
        return [self._fresh(item, why) if isinstance(item, Tensor) else () for item in val]

    def _fresh(self, val: Tensor, pins: str) -> Dims:
        reasons = [self._reason(pins)] if pins else []
        dynamic = [DYNAMIC]
        return tuple(prime(size_hint(n), *reasons, *([] if isinstance(n, int) else dynamic)) for n in val.shape)

    def reason_at(self, why: str, node: fx.Node) -> str:
        """The text of a reason at a node; its parts are stored in `because`."""
        text = f"{why}, at {location_of(node)}"
        if text not in self.because:
            self.because[text] = Reason.at(why, node)
        return text

    def _reason(self, why: str) -> str:
        return self.reason_at(why, self.node) if self.node else why

    def _location(self) -> str:
        """Name of the current node with its line of model code."""
        return location_of(self.node) if self.node else ""


def _resolved(value: Dims | list[Dims] | None) -> Dims | list[Dims] | None:
    if isinstance(value, list):
        return [tuple(map(resolve, dims)) for dims in value]
    return None if value is None else tuple(map(resolve, value))


def location_of(node: fx.Node) -> str:
    """Name of a node with its line of model code."""
    lines = (line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines())
    frames = [line for line in lines if line.startswith("File ")]
    model_frames = [line for line in frames if "/torch/nn/" not in line] or frames  # torch's own frames say little
    return f"{node.name} {model_frames[-1] if model_frames else ''}".strip()


def _has_only_scalars(node: fx.Node) -> bool:
    """Whether all inputs and outputs of a node are scalars."""
    values = torch.utils._pytree.tree_leaves([n.meta.get("val") for n in (node, *node.all_input_nodes)])
    return not any(value.dim() for value in values if isinstance(value, Tensor))
