"""Blocks of a model that can be dropped, found in the graph: residual branches, and what belongs together with them.

A residual branch is a value that is added to the one from which it was computed. Without it the sum is the stream
that was there before, a value of the same axes; so any of them can go. Branches whose parameters lie in one entry of a
list of modules make a block together: from the stream at the first of them to the sum at the last, or to the last
value that is made with a parameter of the entry, as where a norm follows the sum. It is a block only if with it all
parameters of the entry go, and no others.
"""

from abc import ABC, abstractmethod
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
    """What can be dropped: the value of node `exit` becomes that of node `entry`.

    `parameters` are gone with it. `whole`: `name` is an entry of a list of modules, and all of it is gone; else `name`
    is that entry and the number of the branch in it.
    """

    name: str
    entry: str
    exit: str
    parameters: frozenset[str]
    whole: bool


Without = Callable[[Sequence[Unit]], Program]


class Importance(ABC):
    """Says how much every unit matters; the lowest are dropped.

    `stepwise`: asked anew after each of them is gone, since that changes what the others do.
    """

    stepwise: ClassVar[bool] = False

    @abstractmethod
    def importance(self, program: Program, units: Sequence[Unit], without: Callable[[Unit], Program]) -> list[float]:
        """The importance of every unit of the program, which knows its dependencies and its calibration.

        `without` makes the program without one of the units.
        """


def droppable_units(program: Program) -> list[Unit]:
    """All that can be dropped, in the order of the graph: blocks, and branches where a block has several."""
    return list(_Finder(program).units())


def residual_sums(program: Program) -> list[tuple[fx.Node, fx.Node]]:
    """The stream and the sum of every residual branch, in the order of the graph."""
    return [(branch.stream, branch.sum) for branch in _Finder(program).branches]


def drop_units(program: Program, dropped: Sequence[Unit]) -> Program:
    """The program without these units, under its old names; the given one is untouched."""
    entries = {unit.exit: unit.entry for unit in dropped}
    graph, new, byname = fx.Graph(), dict[fx.Node, fx.Node](), dict[str, fx.Node]()
    for node in program.graph.nodes:
        new[node] = graph.node_copy(node, new.__getitem__)
        if node.name in entries:
            new[node] = byname[entries[node.name]]
        byname[node.name] = new[node]
    graph._codegen = program.graph._codegen
    graph.eliminate_dead_code(_acts)
    graph.lint()
    left = program.names(graph.nodes)
    ties = {alias: name for alias, name in program.ties.items() if name in left}
    return replace(program, graph=graph, parameters=program.parameters & left, ties=ties)


def zero_residuals(program: Program, dropped: Sequence[Unit]) -> Program:
    """The program in which what these units add to their streams is multiplied by zero."""
    entries = {unit.exit: unit.entry for unit in dropped}
    graph, new, byname = fx.Graph(), dict[fx.Node, fx.Node](), dict[str, fx.Node]()
    for node in program.graph.nodes:
        new[node] = byname[node.name] = graph.node_copy(node, new.__getitem__)
        if node.name in entries:
            entry = byname[entries[node.name]]
            added = graph.call_function(torch.ops.aten.sub.Tensor, (new[node], entry))
            nothing = graph.call_function(torch.ops.aten.mul.Tensor, (added, 0.0))
            new[node] = byname[node.name] = graph.call_function(torch.ops.aten.add.Tensor, (entry, nothing))
            for made in (added, nothing, new[node]):
                made.meta = dict(node.meta)  # all have the shape of the stream, which those who split the graph ask for
    graph._codegen = program.graph._codegen
    return replace(program, graph=graph)


@dataclass(frozen=True)
class _Branch:
    """A sum of a stream and of what was computed from it, and the parameters that it alone needs."""

    stream: fx.Node
    sum: fx.Node
    parameters: frozenset[str]


@dataclass(frozen=True)
class _Finder:
    """The search for units of one program."""

    program: Program

    def units(self) -> Iterator[Unit]:
        """Blocks and branches, in order."""
        rest = self.branches
        for place, inside in self._entries().items():
            block = self._block(place, inside)
            if block is not None:
                yield block
            alone = block is not None and len(inside) == 1
            for i, branch in enumerate(() if alone else inside):
                yield Unit(f"{place}:{i}", branch.stream.name, branch.sum.name, branch.parameters, False)
            rest = [branch for branch in rest if branch not in inside]
        for branch in rest:
            yield Unit(f"{branch.sum.name}:0", branch.stream.name, branch.sum.name, branch.parameters, False)

    @cached_property
    def branches(self) -> list[_Branch]:
        """All residual branches that need parameters of their own, in order."""
        found: list[_Branch] = []
        streams: dict[fx.Node, fx.Node] = {}
        for node in self.program.graph.nodes:
            stream = self._stream(node, streams)
            if stream is None:
                continue
            gone = self._gone(stream, node)
            if gone & self.program.parameters:
                streams[node] = stream
                found.append(_Branch(stream, node, gone))
        return found

    def _stream(self, node: fx.Node, streams: Mapping[fx.Node, fx.Node]) -> fx.Node | None:
        """The operand of a sum from which, or from whose own stream, the other one was computed."""
        if node.target not in ADDS or node.kwargs.get("alpha", 1) != 1:
            return None
        a, b = node.args[:2]
        if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or not _alike(a, b) or not _alike(a, node):
            return None
        for stream, branch in ((a, b), (b, a)):
            sources = {stream, streams.get(stream, stream)}
            if branch not in sources and any(self._before[branch] >> self._place[source] & 1 for source in sources):
                return stream
        return None

    @cached_property
    def _place(self) -> dict[fx.Node, int]:
        return {node: i for i, node in enumerate(self.program.graph.nodes)}

    @cached_property
    def _before(self) -> dict[fx.Node, int]:
        """For every node a number with a bit for each node from which it is computed, itself too."""
        found: dict[fx.Node, int] = {}
        for node, place in self._place.items():
            bits = 1 << place
            for source in node.all_input_nodes:
                bits |= found[source]
            found[node] = bits
        return found

    def _gone(self, entry: fx.Node, exit: fx.Node) -> frozenset[str]:
        """The parameters and buffers that nothing needs any more where `exit` becomes `entry`."""
        needed, waiting = set[fx.Node](), [n for n in self.program.graph.nodes if n.op == "output" or _acts(n)]
        while waiting:
            node = waiting.pop()
            node = entry if node is exit else node
            if node not in needed:
                needed.add(node)
                waiting += node.all_input_nodes
        return frozenset(self._names - self.program.names(needed))

    @cached_property
    def _names(self) -> frozenset[str]:
        """The parameters and buffers that are read."""
        return frozenset(self.program.names(node for node in self.program.tensors() if node.users))

    def _entries(self) -> dict[str, list[_Branch]]:
        """The branches whose parameters lie in an entry of a list, by the entry's name: the innermost one."""
        found: dict[str, list[_Branch]] = {}
        for branch in self.branches:
            common = _common([name for name in branch.parameters if name in self.program.parameters])
            while common and not common[-1].isdigit():
                common = common[:-1]
            if len(common) > 1:
                found.setdefault(".".join(common), []).append(branch)
        return found

    def _block(self, place: str, inside: Sequence[_Branch]) -> Unit | None:
        """The block of these branches, if all of an entry is gone with it."""
        own = frozenset(name for name in self._names if name.startswith(f"{place}."))
        readers = [n for n in self.program.graph.nodes if any(self._reads(n, name) for name in own)]
        entry = inside[0].stream
        for exit in (inside[-1].sum, *_views(inside[-1].sum), readers[-1]):
            if _alike(entry, exit) and self._before[exit] >> self._place[entry] & 1:
                gone = self._gone(entry, exit)
                if gone == own:
                    return Unit(place, entry.name, exit.name, gone, True)
        return None

    def _reads(self, node: fx.Node, name: str) -> bool:
        return any(n.op == "get_attr" and self.program.name(str(n.target)) == name for n in node.all_input_nodes)


def _acts(node: fx.Node) -> bool:
    """Does a node do more than make its value? To draw random numbers, as attention may for its dropout, is no act."""
    return node.is_impure(impure_random=False)


def _views(node: fx.Node) -> Iterator[fx.Node]:
    """The views that are all that becomes of a value, one after the other."""
    while len(node.users) == 1 and next(iter(node.users)).target in VIEWS:
        node = next(iter(node.users))
        yield node


def _alike(a: fx.Node, b: fx.Node) -> bool:
    """Have two values the same shape and type?"""
    x, y = a.meta.get("val"), b.meta.get("val")
    return isinstance(x, Tensor) and isinstance(y, Tensor) and str(x.shape) == str(y.shape) and x.dtype == y.dtype


def _common(names: Sequence[str]) -> list[str]:
    """What names have in common at their beginning, in parts; without the last part of each."""
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return shared
