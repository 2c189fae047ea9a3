"""Droppable blocks of a model, derived from the graph: residual branches and the blocks that they form.

A residual branch is a value that is added to the residual stream from which it was computed. Without the branch the sum
equals the stream, a value of the same shape, so any branch can be dropped. Branches whose parameters belong to one
entry of a list of modules form a block: from the stream at the first branch to the sum at the last one, or to the last
value computed with a parameter of the entry, as where a norm follows the sum. They are a block only if dropping it
removes all parameters of the entry, and no others.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, fx

from graphprune.ir.program import Program

VIEWS = (torch.ops.aten.view.default, torch.ops.aten.reshape.default)
ADDS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@dataclass(frozen=True)
class Unit:
    """A droppable part: the value of node `exit` is replaced by that of node `entry`.

    `parameters` are the removed ones. `whole`: the unit is a block, and `name` is its entry in a list of modules, such
    as ``layers.3``; otherwise it is a branch, and `name` is the entry and the number of the branch, ``layers.3:0``.
    """

    name: str
    entry: str
    exit: str
    parameters: frozenset[str]
    whole: bool


Without = Callable[[Sequence[Unit]], Program]


class Importance(ABC):
    """An importance score of droppable units; the lowest are dropped.

    `stepwise`: the scores are computed again after each dropped unit, because they depend on the units that remain.
    """

    stepwise: ClassVar[bool] = False

    @abstractmethod
    def importance(self, program: Program, units: Sequence[Unit], without: Callable[[Unit], Program]) -> list[float]:
        """The importance of every unit of a program that has the facts Dependencies and Calibration.

        `without` returns the program without one of the units.
        """


def droppable_units(program: Program) -> list[Unit]:
    """The droppable units in graph order: blocks, and the branches of a block that has several."""
    return list(_Finder(program).units())


def residual_sums(program: Program) -> list[tuple[fx.Node, fx.Node]]:
    """The stream and the sum of every residual branch, in graph order."""
    return [(branch.stream, branch.sum) for branch in _Finder(program).branches]


def drop_units(program: Program, dropped: Sequence[Unit]) -> Program:
    """A new program without these units; node and parameter names are unchanged."""
    entries = {unit.exit: unit.entry for unit in dropped}
    graph, new, byname = fx.Graph(), dict[fx.Node, fx.Node](), dict[str, fx.Node]()
    for node in program.graph.nodes:
        new[node] = graph.node_copy(node, new.__getitem__)
        if node.name in entries:
            new[node] = byname[entries[node.name]]
        byname[node.name] = new[node]
    graph._codegen = program.graph._codegen
    graph.eliminate_dead_code(_has_side_effects)
    graph.lint()
    remaining = program.names(graph.nodes)
    ties = {alias: name for alias, name in program.ties.items() if name in remaining}
    return replace(program, graph=graph, parameters=program.parameters & remaining, ties=ties)


def zero_residuals(program: Program, dropped: Sequence[Unit]) -> Program:
    """A new program in which the outputs of these units are multiplied by zero before they are added to the stream."""
    entries = {unit.exit: unit.entry for unit in dropped}
    graph, new, byname = fx.Graph(), dict[fx.Node, fx.Node](), dict[str, fx.Node]()
    for node in program.graph.nodes:
        new[node] = byname[node.name] = graph.node_copy(node, new.__getitem__)
        if node.name in entries:
            entry = byname[entries[node.name]]
            added = graph.call_function(torch.ops.aten.sub.Tensor, (new[node], entry))
            zero = graph.call_function(torch.ops.aten.mul.Tensor, (added, 0.0))
            new[node] = byname[node.name] = graph.call_function(torch.ops.aten.add.Tensor, (entry, zero))
            for value in (added, zero, new[node]):
                value.meta = dict(node.meta)  # all have the shape of the stream, which splitting the graph reads
    graph._codegen = program.graph._codegen
    return replace(program, graph=graph)


@dataclass(frozen=True)
class _Branch:
    """A sum of a stream and a value computed from it, and the parameters that nothing else needs."""

    stream: fx.Node
    sum: fx.Node
    parameters: frozenset[str]


@dataclass(frozen=True)
class _Finder:
    """The search for the droppable units of one program."""

    program: Program

    def units(self) -> Iterator[Unit]:
        """The blocks and branches in order."""
        grouped = set[str]()
        for entry, branches in self._entries().items():
            block = self._block(entry, branches)
            if block is not None:
                yield block
            same = block is not None and len(branches) == 1
            for i, branch in enumerate(() if same else branches):
                yield Unit(f"{entry}:{i}", branch.stream.name, branch.sum.name, branch.parameters, False)
            grouped |= {branch.sum.name for branch in branches}
        for branch in (branch for branch in self.branches if branch.sum.name not in grouped):
            yield Unit(f"{branch.sum.name}:0", branch.stream.name, branch.sum.name, branch.parameters, False)

    @cached_property
    def branches(self) -> list[_Branch]:
        """The residual branches that have parameters of their own, in order."""
        branches: list[_Branch] = []
        streams: dict[fx.Node, fx.Node] = {}
        for node in self.program.graph.nodes:
            stream = self._stream(node, streams)
            if stream is None:
                continue
            removed = self._removed(stream, node)
            if removed & self.program.parameters:
                streams[node] = stream
                branches.append(_Branch(stream, node, removed))
        return branches

    def _stream(self, node: fx.Node, streams: Mapping[fx.Node, fx.Node]) -> fx.Node | None:
        """The operand of a sum from which the other one was computed, directly or from the stream before it."""
        if node.target not in ADDS or node.kwargs.get("alpha", 1) != 1:
            return None
        a, b = node.args[:2]
        if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or not _alike(a, b) or not _alike(a, node):
            return None
        for stream, branch in ((a, b), (b, a)):
            sources = {stream, streams.get(stream, stream)}
            if branch not in sources and any(self._depends(branch, source) for source in sources):
                return stream
        return None

    def _depends(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether a node is computed from `source`, or is the same."""
        return bool(self._ancestors[node] >> self._positions[source] & 1)

    @cached_property
    def _positions(self) -> dict[fx.Node, int]:
        return {node: i for i, node in enumerate(self.program.graph.nodes)}

    @cached_property
    def _ancestors(self) -> dict[fx.Node, int]:
        """The ancestors of every node, itself included, as a bit set over positions."""
        ancestors: dict[fx.Node, int] = {}
        for node, position in self._positions.items():
            bits = 1 << position
            for source in node.all_input_nodes:
                bits |= ancestors[source]
            ancestors[node] = bits
        return ancestors

    def _removed(self, entry: fx.Node, exit: fx.Node) -> frozenset[str]:
        """The parameters and buffers that become unused when `exit` is replaced by `entry`.

        Only nodes that are computed for `exit` alone are visited, so that the search is linear in the graph.
        """
        unused, queue = {exit}, [exit]
        while queue:
            for source in queue.pop().all_input_nodes:
                if source is entry or source in unused or source not in self._needed or source in self._roots:
                    continue
                if all(user in unused or user not in self._needed for user in source.users):
                    unused.add(source)
                    queue.append(source)
        lost = Counter(self.program.name(str(node.target)) for node in unused if node.op == "get_attr")
        never = self._names - self._reading.keys()
        return never | {name for name, count in lost.items() if count == self._reading[name]} & self._names

    @cached_property
    def _roots(self) -> frozenset[fx.Node]:
        """The nodes that are computed for their own sake: the output, and those with side effects."""
        return frozenset(n for n in self.program.graph.nodes if n.op == "output" or _has_side_effects(n))

    @cached_property
    def _needed(self) -> frozenset[fx.Node]:
        """The roots, and all nodes from which they are computed."""
        needed, waiting = set[fx.Node](), list(self._roots)
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += node.all_input_nodes
        return frozenset(needed)

    @cached_property
    def _reading(self) -> Counter[str]:
        """The number of needed nodes that read each parameter or buffer."""
        return Counter(self.program.name(str(node.target)) for node in self._needed if node.op == "get_attr")

    @cached_property
    def _names(self) -> frozenset[str]:
        """The parameters and buffers that some node reads."""
        return frozenset(self.program.names(node for node in self.program.tensors() if node.users))

    def _entries(self) -> dict[str, list[_Branch]]:
        """The branches by the innermost entry of a module list to which all their parameters belong."""
        entries: dict[str, list[_Branch]] = {}
        for branch in self.branches:
            common = _common([name for name in branch.parameters if name in self.program.parameters])
            while common and not common[-1].isdigit():
                common = common[:-1]
            if len(common) > 1:
                entries.setdefault(".".join(common), []).append(branch)
        return entries

    def _block(self, name: str, branches: Sequence[_Branch]) -> Unit | None:
        """The block of these branches, if dropping it removes exactly the parameters of the list entry `name`."""
        first, after = bisect_left(self._sorted_names, f"{name}."), bisect_left(self._sorted_names, f"{name}/")
        parameters = frozenset(self._sorted_names[first:after])
        reader = max((self._readers[p] for p in parameters), key=self._positions.__getitem__)
        entry, last = branches[0].stream, branches[-1].sum
        for exit in (last, *_views(last), reader):
            if _alike(entry, exit) and self._depends(exit, entry) and self._removed(entry, exit) == parameters:
                return Unit(name, entry.name, exit.name, parameters, True)
        return None

    @cached_property
    def _sorted_names(self) -> list[str]:
        return sorted(self._names)

    @cached_property
    def _readers(self) -> dict[str, fx.Node]:
        """The last node that reads each parameter or buffer."""
        pairs = ((node, source) for node in self.program.graph.nodes for source in node.all_input_nodes)
        return {self.program.name(str(source.target)): node for node, source in pairs if source.op == "get_attr"}


def _has_side_effects(node: fx.Node) -> bool:
    """Whether a node does more than compute its value; drawing random numbers, as dropout does, does not count."""
    return node.is_impure(impure_random=False)


def _views(node: fx.Node) -> Iterator[fx.Node]:
    """The chain of views that are the only use of a value."""
    while len(node.users) == 1 and next(iter(node.users)).target in VIEWS:
        node = next(iter(node.users))
        yield node


def _alike(a: fx.Node, b: fx.Node) -> bool:
    """Whether two values have the same shape and dtype."""
    x, y = a.meta.get("val"), b.meta.get("val")
    return isinstance(x, Tensor) and isinstance(y, Tensor) and str(x.shape) == str(y.shape) and x.dtype == y.dtype


def _common(names: Sequence[str]) -> list[str]:
    """The common module path of parameter names, in parts."""
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return shared
