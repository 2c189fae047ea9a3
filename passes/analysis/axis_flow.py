"""Axes flow through the graph: every operator's rule is asked once, in order."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from math import prod

import torch
from torch import Tensor, fx

from graphprune.axes import algebra
from graphprune.axes.algebra import Axis, Misaligned, prime, primes
from graphprune.axes.explanations import Reason
from graphprune.axes.rule import Consumer, Dims, Rule
from graphprune.axes.rule_helpers import DYNAMIC, size_hint
from graphprune.errors import AnalysisError, because
from graphprune.ir.printer import neighborhood
from graphprune.ir.program import Program
from graphprune.passes.analysis.index_values import Pointers
from graphprune.passes.analysis.row_partitions import RowPartitions
from graphprune.passes.operators import RULES

aten = torch.ops.aten
VIEWS = {aten.expand.default, aten.reshape.default, aten.clone.default, aten.unsqueeze.default, aten.slice.Tensor}


@dataclass(frozen=True)
class Cached:
    """Keys or values before they are repeated for their queries: their axes, and their bytes a token."""

    axes: Dims
    bytes_per_token: int

    @classmethod
    def of(cls, flow: "AxisFlow", value: fx.Node) -> "Cached":
        """Follow a value back through operators that only view or repeat it, to where it is smallest."""
        best, node = value, value
        while node.target in VIEWS and isinstance(node.args[0], fx.Node):
            node = node.args[0]
            best = node if flow.size(node) < flow.size(best) else best
        val = best.meta["val"]
        return cls(flow.dims(best), prod(n for n in val.shape if isinstance(n, int)) * val.element_size())


@dataclass
class AxisFlow:
    """The state of one analysis; rules see it as `axes.rule.Flow`."""

    program: Program
    values: dict[fx.Node, Dims | list[Dims] | None] = field(default_factory=dict)
    tensors: dict[str, Dims] = field(default_factory=dict)
    consumers: list[Consumer] = field(default_factory=list)
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
        """Visit every node."""
        for node in self.program.graph.nodes:
            self.node = node
            self.values[node] = self._visit(node)
            self.row_partitions.follow(node, RULES.get(node.target), self.outputs)
        return self

    def dims(self, value: object) -> Dims:
        """The axes of a value; none of a literal."""
        found = self.values.get(value) if isinstance(value, fx.Node) else None
        return found if found is not None else ()  # type: ignore[return-value]

    def outputs(self, node: fx.Node) -> list[Dims]:
        """The axes of every output of a node."""
        found = self.values.get(node)
        return found if isinstance(found, list) else [found] if found is not None else []

    def flat(self, node: fx.Node) -> list[Axis]:
        """The axes of a node, of one output after the other."""
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
        """Forbid a cut."""
        if any(len(p.pins) < algebra.MAX_REASONS for p in primes(axis)):
            algebra.pin(axis, self._say(why))

    def mark_inexact(self, axis: Axis, why: str) -> None:
        """Note that a cut of the axis changes the remaining values."""
        self.inexact.append((axis, self._say(why)))

    def average(self, axis: Axis, operand: object) -> None:
        """Note that a cut of the axis makes the result greater by a constant factor."""
        self.averaged.append((axis, self._say("it is averaged here")))
        self.contract(axis, operand)

    def share_selection(self, inner: Iterable[Axis], outer: Iterable[Axis]) -> None:
        """Note that all indices of `outer` must retain the same indices of `inner`."""
        self.mixed.append((list(inner), list(outer)))

    def require_width(self, axis: Axis, least: int, multiple: int = 1) -> None:
        """Note the least number of indices that must be retained, and the number of which it is a multiple."""
        self.leasts.append((axis, least, multiple))

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
        """Are the rows of a value partitioned by these offsets?"""
        return self.row_partitions.holds(value, offsets)

    def contract(self, axis: Axis, *operands: object) -> None:
        """Note a sum over an axis."""
        self.summed.append((self.node, axis))
        assert self.node is not None  # rules are asked while a node is visited
        self.contractions.append((axis, operands, self.node))

    def count_macs(self, *axes: Axis) -> None:
        """Note a product of two activations."""
        assert self.node is not None
        self.multiplied.append((self.node, axes))

    def consume(self, consumer: Consumer) -> None:
        """Note that a parameter contracts an axis, and produces its other ones."""
        self.consumers.append(consumer)
        for dim in range(len(self.tensors[consumer.weight])):
            self.roles[consumer.weight, dim].add("contracted" if dim == consumer.dim else "produced")

    def cache_kv(self, *values: object) -> None:
        """Note keys and values, which a language model keeps for every token."""
        self.keys_and_values += values

    def produce(self, parameter: object, dim: int) -> None:
        """Note that a parameter produces an axis."""
        if found := self.parameter_of(parameter):
            self.roles[found[0], found[1][dim]].add("produced")

    def parameter_of(self, value: object) -> tuple[str, tuple[int, ...]] | None:
        """The parameter behind a value that is only a transposed view of it."""
        if not isinstance(value, fx.Node):
            return None
        if value.op == "get_attr":
            name = self.program.name(str(value.target))
            return (name, tuple(range(len(self.tensors[name])))) if name in self.program.parameters else None
        rule = RULES.get(value.target)
        order = rule.permutation(value, len(self.dims(value))) if rule else None
        found = self.parameter_of(value.args[0]) if order else None  # no further than views go: a graph may be deep
        return (found[0], tuple(found[1][i] for i in order)) if order and found else None

    def size(self, node: fx.Node) -> int:
        """How many elements a value has."""
        return prod(axis.size for axis in self.dims(node))

    def numel(self, name: str) -> int:
        """How many elements a parameter has."""
        return prod(axis.size for axis in self.tensors[name])

    def cached(self) -> list["Cached"]:
        """The keys and values of every attention, as a cache would hold them."""
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
            self._fresh(val, "" if self._is_state(node.name) else "it is an input") if isinstance(val, Tensor) else None
        )

    def _tensor(self, node: fx.Node) -> Dims | None:
        if not isinstance(node.meta.get("val"), Tensor):
            return None
        name = self.program.name(str(node.target))
        if name not in self.tensors:
            self.tensors[name] = self._fresh(node.meta["val"], "")
        return self.tensors[name]

    def _output(self, node: fx.Node) -> None:
        leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(node.args[0]) if isinstance(leaf, fx.Node)]
        for leaf, name in zip(leaves, self._output_names(leaves), strict=True):
            for axis in self.flat(leaf):
                if not self._is_state(name):
                    self.pin(axis, "it is an output")
        self._follow(node, None)

    def _output_names(self, leaves: list[fx.Node]) -> list[str]:
        """Names of the outputs as a user writes them: by their position in the structure."""
        spec = getattr(getattr(self.program.graph._codegen, "pytree_info", None), "out_spec", None)
        if spec is None:
            return [leaf.name for leaf in leaves]
        tree = torch.utils._pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
        paths = [torch.utils._pytree.keystr(path) for path, _ in torch.utils._pytree.tree_flatten_with_path(tree)[0]]
        return paths if len(paths) == len(leaves) else [leaf.name for leaf in leaves]

    def _is_state(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.program.state)

    def _call(self, node: fx.Node) -> Dims | list[Dims] | None:
        val = node.meta.get("val")
        if not isinstance(val, (Tensor, list, tuple)):
            self._follow(node, None)
            return None
        if node.target not in RULES:
            self.opaque[str(node.target)] += 1
            return self._opaque(node, f"{node.target} has no rule")
        if _is_of_scalars(node):  # which have a dimension 0 for torch, and none here
            return self._opaque(node, "")
        try:
            result = RULES[node.target].axes(self, node)
        except Misaligned as fault:
            return self._opaque(node, str(fault))
        except Exception as fault:  # a call that the rule did not foresee: named like an operator without one
            why = f"{node.target} is called in a way that its rule does not know{because(fault)}"
            self.opaque[why] += 1
            return self._opaque(node, why)
        self._check(node, result)
        self._follow(node, RULES[node.target])
        return result

    def _follow(self, node: fx.Node, rule: Rule | None) -> None:
        """Indices that are only moved stay indices; what others point into must stay as it is."""
        for axis in self.pointers.follow(node, rule):
            self.pin(axis, "its indices are computed with")

    def _check(self, node: fx.Node, result: Dims | list[Dims] | None) -> None:
        """See that a rule's axes have the sizes of the value.

        Raises:
            AnalysisError: if they have not: the rule is wrong.
        """
        val = node.meta["val"]
        pairs = zip(result, val, strict=True) if isinstance(result, list) else [(result or (), val)]
        for dims, tensor in pairs:
            got, expected = [axis.size for axis in dims], [size_hint(size) for size in tensor.shape]
            if got != expected and not (isinstance(result, list) and not dims):
                raise AnalysisError(
                    f"the rule of {node.target} says shape {got} at {self._where()}, it is {expected}\n"
                    f"{neighborhood(node)}\nPlease report it."
                )

    def _opaque(self, node: fx.Node, why: str) -> Dims | list[Dims]:
        """Pin everything that the node touches."""
        for value in node.all_input_nodes:
            for axis in self.flat(value):
                self.pin(axis, why)
        self._follow(node, None)
        val = node.meta["val"]
        if isinstance(val, Tensor):
            return self._fresh(val, why)
        return [self._fresh(item, why) if isinstance(item, Tensor) else () for item in val]

    def _fresh(self, val: Tensor, pins: str) -> Dims:
        reasons = [self._say(pins)] if pins else []
        dynamic = [DYNAMIC]
        return tuple(prime(size_hint(n), *reasons, *([] if isinstance(n, int) else dynamic)) for n in val.shape)

    def say(self, why: str, node: fx.Node) -> str:
        """The text of a reason that lies in a node; what it is made of is noted."""
        text = f"{why}, at {where(node)}"
        if text not in self.because:
            self.because[text] = Reason.at(why, node)
        return text

    def _say(self, why: str) -> str:
        return self.say(why, self.node) if self.node else why

    def _where(self) -> str:
        """The current node and its line of model code."""
        return where(self.node) if self.node else ""


def where(node: fx.Node) -> str:
    """A node and its line of model code."""
    lines = (line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines())
    frames = [line for line in lines if line.startswith("File ")]
    own = [line for line in frames if "/torch/nn/" not in line] or frames  # torch's layers say little
    return f"{node.name} {own[-1] if own else ''}".strip()


def _is_of_scalars(node: fx.Node) -> bool:
    """Has nothing that a node reads or makes a dimension?"""
    values = torch.utils._pytree.tree_leaves([n.meta.get("val") for n in (node, *node.all_input_nodes)])
    return not any(value.dim() for value in values if isinstance(value, Tensor))
