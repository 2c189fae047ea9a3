"""The pass that measures the latency of the parts of a model at several widths, for budgets in latency.

Operators with the same groups in their axes are measured together, as one small model with random weights: at full
width, and at some widths of every group. Latencies in between are interpolated. Where a part has several groups, their
factors are multiplied. Operators without a group are measured, too, so that shares are of the whole run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.axes.algebra import Prime, primes
from graphprune.axes.groups import Curve, Dependencies, Group, Term
from graphprune.axes.rule_helpers import substitute_sizes, token_symbols
from graphprune.display.progress import progress
from graphprune.errors import PlanError, choices
from graphprune.execution.latency import RUNTIMES, LatencyTable, Shape, Subgraph
from graphprune.ir.program import Dropped, Program
from graphprune.passes.rewriting.rewrite import rewrite
from graphprune.passes.scores import SCORES
from graphprune.passes.scores.score import in_play
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import Eligible
from graphprune.planning.plan import make

NANO = 1e9


@PASSES.register("measure-latency")
@dataclass(frozen=True)
class MeasureLatency(Pass):
    """Measure the latency saved by cutting the groups that the score `by` applies to, on `runtime`: ``onnxruntime``
    (CPU), ``onnxruntime-cuda`` or ``torch``. `table` names a JSON file that stores measurements for later runs; without
    it they are held in memory. Each group is measured at `points` widths. Where the model takes any number of token
    ids, a run is one sequence of `sequence` tokens; else it is the captured example."""

    name: ClassVar[str] = "measure-latency"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible)
    reads: ClassVar[tuple[type, ...]] = (Dropped,)
    makes: ClassVar[tuple[type, ...]] = (Dependencies,)
    surveys: ClassVar[bool] = True
    by: str = "magnitude"
    runtime: str = "onnxruntime"
    table: str = ""
    sequence: int = 128
    points: int = 4

    def check(self) -> None:
        """Refuse unknown scores and runtimes.

        Raises:
            PlanError: if the runtime is unknown.
            RegistryError: if the score is unknown.
        """
        SCORES[self.by]
        if self.runtime not in RUNTIMES:
            raise PlanError(f"no runtime {self.runtime!r}; {choices(self.runtime, RUNTIMES)}")

    def run(self, program: Program) -> Program:
        """The program whose dependencies have the terms of a budget in ``latency``, in nanoseconds.

        Raises:
            PlanError: if the runtime cannot run a part of the model.
            LoadError: if the file is no table of this runtime.
        """
        table, dependencies = LatencyTable.open(self.table, self.runtime), program.fact(Dependencies)
        parts = _Parts(program, in_play(program, self.by), table, self.sequence, self.points)
        terms = list[Term]()
        with progress("measuring", len(parts.touched)) as step:
            for groups, nodes in parts.touched.items():
                terms.append(parts.term(groups, nodes))
                step()
        table.save()
        return program.with_facts(replace(dependencies, terms={**dependencies.terms, "latency": tuple(terms)}))


@dataclass
class _Parts:
    """The parts of one program, by the groups in their axes."""

    program: Program
    groups: Sequence[Group]
    table: LatencyTable
    length: int
    points: int
    terms: dict[str, tuple[float, tuple[Any, ...]]] = field(default_factory=dict)
    narrower: dict[tuple[str, int], Program] = field(default_factory=dict)

    @cached_property
    def dependencies(self) -> Dependencies:
        """The axes of the program."""
        return self.program.fact(Dependencies)

    @cached_property
    def touched(self) -> Mapping[tuple[Group, ...], list[fx.Node]]:
        """The operators of every part, without those that compute no tensor."""
        parts: dict[tuple[Group, ...], list[fx.Node]] = {}
        groups_of: dict[fx.Node, tuple[Group, ...]] = {}
        for node in self.program.graph.nodes:
            if node.op == "call_function" and _shapes(node, {}):
                source = node.args[0] if node.args else None
                is_item = isinstance(source, fx.Node) and isinstance(source.meta.get("val"), list | tuple)
                groups_of[node] = groups_of[source] if is_item and source in groups_of else self._groups_of(node)
                parts.setdefault(groups_of[node], []).append(node)
        return parts

    def _groups_of(self, node: fx.Node) -> tuple[Group, ...]:
        """The groups in the axes of the inputs and outputs of a node, in order."""
        read = {p for value in (node, *node.all_input_nodes) for dims in self._dims(value) for p in dims}
        return tuple(group for group in self.groups if group.prime in read)

    def _dims(self, value: fx.Node) -> list[list[Prime]]:
        """The primes in every dimension of every output of a node."""
        return [list(primes(axis)) for axis in self.dependencies.axes_of(value.name)]

    def term(self, groups: tuple[Group, ...], nodes: Sequence[fx.Node]) -> Term:
        """The nanoseconds of a part, and their factor at widths of each group."""
        piece = self._piece(self.program, nodes)
        number = {group.prime: i for i, group in enumerate(groups)}
        layout = [[[number.get(p) for p in dims] for dims in self._dims(node)] for node in nodes]
        key = f"{piece.key} {layout} {[(g.size, g.least, g.unit) for g in groups]}"
        if key not in self.terms:
            whole = self.table.seconds_of(piece)
            self.terms[key] = whole, tuple(self._curve(group, nodes, whole) for group in groups)
        seconds, curves = self.terms[key]
        return Curve(tuple(group.prime for group in groups), seconds * NANO, curves)

    def _curve(self, group: Group, nodes: Sequence[fx.Node], whole: float) -> tuple[tuple[int, float], ...]:
        """The factor at some widths; a measurement that rises as the width falls is noise, and is replaced."""
        steps = {max(group.size * i // self.points // group.unit * group.unit, group.least) for i in range(self.points)}
        factors, most = [(group.size, 1.0)], 1.0
        for width in sorted(steps - {group.size}, reverse=True):
            names = {node.name for node in nodes}
            small = self._narrowed(group, width)
            same = [node for node in small.graph.nodes if node.name in names]
            most = min(most, self.table.seconds_of(self._piece(small, same)) / whole)
            factors.append((width, most))
        return tuple(reversed(factors))

    def _narrowed(self, group: Group, width: int) -> Program:
        """The program with one group cut to a width."""
        key = group.name, width
        if key not in self.narrower:
            rows = dict.fromkeys([group.name], (tuple(range(width)),))
            self.narrower[key] = rewrite(self.program, make(self.program, self.dependencies, rows))
        return self.narrower[key]

    def _piece(self, program: Program, nodes: Sequence[fx.Node]) -> Subgraph:
        """Operators as a graph of their own."""
        graph, new, shapes = fx.Graph(), dict[fx.Node, fx.Node](), dict[str, Shape]()
        submodules = dict[str, Any]()
        inside = set(nodes)
        for source in dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside):
            source_shapes = _shapes(source, self._sizes)
            if source.op == "get_attr":
                name = f"a{len(shapes) + len(submodules)}"
                new[source] = graph.get_attr(name)
                if not source_shapes:
                    submodules[name] = program.submodules[str(source.target)]
            elif source_shapes:
                name = f"x{len(shapes)}"
                new[source] = graph.placeholder(name)
            if source_shapes:
                shapes[name] = source_shapes[0]

        def value(n: fx.Node) -> Any:
            return new[n] if n in new else substitute_sizes(n.meta["val"], self._sizes)

        for node in nodes:
            args, kwargs = pytree.tree_map_only(fx.Node, value, (node.args, node.kwargs))
            new[node] = graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]
        outputs = [
            n for n in nodes if (isinstance(n.meta["val"], Tensor) and not inside >= n.users.keys()) or not n.users
        ]
        graph.output(tuple(new[node] for node in outputs or nodes[-1:]))
        return Subgraph(graph, shapes, submodules)

    @cached_property
    def _sizes(self) -> dict[Any, int]:
        """The sizes of the symbols of token ids: one sequence of this length."""
        free = token_symbols(self.program.graph)
        return dict(zip(free, (1, self.length), strict=True)) if len(free) == 2 else {}


def _shapes(node: fx.Node, sizes: Mapping[Any, int]) -> list[Shape]:
    """The shapes and types of the tensors that a node computes."""
    leaves = [leaf for leaf in pytree.tree_leaves(node.meta.get("val")) if isinstance(leaf, Tensor)]
    return [(tuple(substitute_sizes(n, sizes) for n in leaf.shape), leaf.dtype) for leaf in leaves]
