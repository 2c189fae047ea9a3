"""Embedding tables of a graph: weights whose rows inputs select, and linear layers with an output for each row."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx

from graphprune.axes.groups import Dependencies
from graphprune.axes.rule import Consumer
from graphprune.execution.segments import Constants
from graphprune.ir.program import Program
from graphprune.solvers.factorable import PRODUCTS
from graphprune.statistics.collector import Calibration, token_mask

aten = torch.ops.aten
VIEWS = (aten.t.default, aten.transpose.int, aten.permute.default)
LEAST = 4  # rows per column; a smaller table holds no groups of rows that a low rank makes smaller


@dataclass(frozen=True)
class EmbeddingTable:
    """A weight of shape (rows, columns), by name: the nodes that look up its rows, and the linear layers that multiply
    by it, its heads.

    `indices` are the nodes whose values select rows: of this table or, for a head alone, of one with as many rows.
    """

    weight: str
    lookups: tuple[str, ...]
    heads: tuple[Consumer, ...]
    indices: tuple[str, ...]


def embedding_tables(
    program: Program, dependencies: Dependencies, protect: Collection[str] = ()
) -> tuple[list[EmbeddingTable], dict[str, str]]:
    """The tables whose rows can be grouped, in order; and the weights of other large lookups, with the reasons."""
    finder = _Finder(program, {c.node: c for c in dependencies.consumers if c.dim == 1 and c.reads_values})
    tables, left = list[EmbeddingTable](), dict[str, str]()
    rows: dict[int, tuple[str, ...]] = {}
    for name in finder.looked_up:
        table, fault = finder.table(name)
        if _is_protected(program, name, protect):
            fault = "it is protected"
        if fault:
            left[name] = fault
        elif table:
            tables.append(table)
            rows.setdefault(program.shapes()[name][0], table.indices)
    for name, head in finder.heads_alone().items():
        length = program.shapes()[name][0]
        if length in rows and not _is_protected(program, name, protect):
            tables.append(EmbeddingTable(name, (), (head,), rows[length]))
    return tables, left


class _Finder:
    """The readers of large weights."""

    def __init__(self, program: Program, heads: dict[str, Consumer]) -> None:
        shapes = program.shapes()
        self.program, self.heads = program, heads
        self.readers: dict[str, list[fx.Node]] = {}
        for node in program.tensors():
            name = program.name(str(node.target))
            if len(shapes[name]) == 2 and shapes[name][0] >= LEAST * shapes[name][1] > LEAST:
                self.readers.setdefault(name, []).extend(_readers(node))

    @cached_property
    def constants(self) -> set[str]:
        """The names of values that depend on no parameter."""
        return set(Constants(self.program).of(self.program.flat(*self.program.inputs)))

    @property
    def looked_up(self) -> list[str]:
        """The weights of lookups."""
        return [name for name, nodes in self.readers.items() if any(self._looks_up(node, name) for node in nodes)]

    def table(self, name: str) -> tuple[EmbeddingTable | None, str]:
        """The table of a weight, or the reason why there is none; neither where no input selects its rows."""
        lookups = [node for node in self.readers[name] if self._looks_up(node, name)]
        others = [node for node in self.readers[name] if node not in lookups]
        indices = dict.fromkeys(_index(node) for node in lookups)
        if not all(map(_follows_input, indices)):
            return None, ""
        if not {node.name for node in indices} <= self.constants:
            return None, "the indices of its rows depend on weights"
        if odd := next((node for node in others if not self._is_head(node, name)), None):
            return None, f"{odd.name} reads it, which is neither a lookup nor a linear layer"
        names = tuple(node.name for node in lookups), tuple(self.heads[node.name] for node in others)
        return EmbeddingTable(name, *names, tuple(node.name for node in indices)), ""

    def heads_alone(self) -> dict[str, Consumer]:
        """The linear layers that alone read a large weight, by its name."""
        alone = {name: nodes[0] for name, nodes in self.readers.items() if len(nodes) == 1}
        return {name: self.heads[node.name] for name, node in alone.items() if self._is_head(node, name)}

    def _is_head(self, node: fx.Node, name: str) -> bool:
        head = self.heads.get(node.name)
        return head is not None and head.weight == name and node.target in PRODUCTS and not node.kwargs

    def _looks_up(self, node: fx.Node, name: str) -> bool:
        first: Any = node.args[0] if node.args else None
        own = isinstance(first, fx.Node) and first.op == "get_attr" and self.program.name(str(first.target)) == name
        return node.target is aten.embedding.default and own and _index(node) is not first


def _is_protected(program: Program, name: str, keys: Collection[str]) -> bool:
    """Whether a key, a glob, names a parameter, one of its dimensions, or a module around it, by any of its names."""
    names = [name, *(alias for alias, stored in program.ties.items() if stored == name)]
    paths = [".".join(parts[: i + 1]) for parts in (n.split(".") for n in names) for i in range(len(parts))]
    globs = [key.partition(":")[0].removesuffix(".*") for key in keys]
    return any(fnmatch(path, glob) for path in paths for glob in globs)


def _index(lookup: fx.Node) -> fx.Node:
    index = lookup.args[1]
    assert isinstance(index, fx.Node)
    return index


def _readers(node: fx.Node) -> list[fx.Node]:
    """The nodes that read a weight, behind transposed views of it."""
    return [reader for user in node.users for reader in (_readers(user) if user.target in VIEWS else [user])]


def _follows_input(node: fx.Node) -> bool:
    """Whether a value is computed from integers that are inputs, not from their shape alone."""
    if node.op == "placeholder":
        value = node.meta.get("val")
        return isinstance(value, Tensor) and not value.is_floating_point()
    return any(_follows_input(n) for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor))


def count_rows(program: Program, table: EmbeddingTable) -> Tensor:
    """The number of times that calibration inputs select each row, shape (rows,), without padding."""
    calibration, constants = program.fact(Calibration), Constants(program)
    counts = torch.zeros(program.shapes()[table.weight][0], dtype=torch.float64)
    for leaves in calibration.batches:
        real, known = token_mask(program, leaves), constants.of(leaves)
        for name in table.indices:
            ids: Tensor = known[name].cpu()
            ids = ids[real] if real is not None and real.shape == ids.shape else ids
            counts += torch.bincount(ids.flatten(), minlength=len(counts))
    return counts


def is_descending(counts: Tensor, parts: Sequence[int]) -> bool:
    """Whether no part of the rows, in their order, is selected more often per row than the part before it."""
    means = [float(part.mean()) for part in torch.split(counts, list(parts))]
    return all(a >= b for a, b in pairwise(means))


def decreasing(counts: Tensor) -> Tensor:
    """The best decreasing fit to counts in order, by least squares: adjacent violators are pooled."""
    means, sizes = list[float](), list[int]()
    for value in counts.tolist():
        mean, size = value, 1
        while means and means[-1] <= mean:
            before, count = means.pop(), sizes.pop()
            mean, size = (mean * size + before * count) / (size + count), size + count
        means.append(mean)
        sizes.append(size)
    return torch.repeat_interleave(torch.tensor(means, dtype=torch.float64), torch.tensor(sizes))
