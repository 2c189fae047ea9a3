"""Dimensions of parameters that the identifiers of tokens index, and the configuration that sets their size."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx

from graphprune.axes.algebra import Axis, resolve
from graphprune.axes.groups import Dependencies
from graphprune.errors import ExportError
from graphprune.huggingface.default_fields import Path, placed
from graphprune.huggingface.meta_models import Shapes, as_text, flat, from_table, summarize, try_build
from graphprune.ir.program import Program

TensorDim = tuple[str, int]
INDICES = "input_ids"  # the end of the name of inputs that are identifiers of tokens
_MOVES = (
    "view",
    "reshape",
    "clone",
    "slice",
    "unsqueeze",
    "squeeze",
    "expand",
    "to",
    "_to_copy",
    "contiguous",
    "alias",
)


@dataclass(frozen=True)
class VocabularyAxes:
    """Dimensions of parameters, by name, of `rows` indices each, one for every token."""

    rows: int
    dims: frozenset[TensorDim]

    @classmethod
    def of(cls, program: Program) -> "VocabularyAxes":
        """The dimensions of a program: those of tables that its inputs index, of its outputs of the same size, and all
        that are coupled with one of them.

        Raises:
            ExportError: if there is no table, tables differ in size, or the outputs have another.
        """
        dependencies = program.fact(Dependencies)
        tables = [str(node.args[0].target) for node in _lookups(program)]
        sizes = {name: dependencies.tensors[program.name(name)][0].size for name in tables}
        if not tables:
            raise ExportError(
                "the model has no table that the identifiers of tokens index, so it has no vocabulary to trim"
            )
        rows = max(sizes.values())
        if smaller := sorted(name for name, size in sizes.items() if size != rows):
            raise ExportError(
                f"{smaller[0]} has {sizes[smaller[0]]:,} rows for tokens, another table {rows:,}; trim a model whose "
                "tables have one size"
            )
        axes = [dependencies.tensors[program.name(name)][0] for name in tables]
        axes += [axis for axis in _last_axes(program, dependencies) if axis.size == rows]
        keys = {id(resolve(axis)) for axis in axes}
        every = ((name, dim, axis) for name, dims in dependencies.tensors.items() for dim, axis in enumerate(dims))
        return cls(rows, frozenset((name, dim) for name, dim, axis in every if id(resolve(axis)) in keys))


def _lookups(program: Program) -> Iterator[Any]:
    """Nodes that select rows of a parameter by an input of the program."""
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.embedding.default and _is_indices(node.args[1]):
            yield node


def _is_indices(node: Any) -> bool:
    """Whether a value is an input of identifiers of tokens, moved at most."""
    while isinstance(node, fx.Node) and node.op == "call_function" and node.args:
        if getattr(node.target, "_opname", "") not in _MOVES:
            return False
        node = node.args[0]
    return isinstance(node, fx.Node) and node.op == "placeholder" and node.name.endswith(INDICES)


def _last_axes(program: Program, dependencies: Dependencies) -> Iterator[Axis]:
    """Last axes of the outputs."""
    for leaf in pytree.tree_leaves(program.graph.output_node().args[0]):
        dims = dependencies.axes_of(leaf.name) if isinstance(leaf, fx.Node) else []
        yield from dims[-1:]


def resized(config: Any, axes: VocabularyAxes, shapes: Shapes, rows: int) -> tuple[Any, frozenset[TensorDim]]:
    """A configuration with another number of rows, and the dimensions of all parameters that it changes.

    The fields are those that change dimensions of the vocabulary alone; `shapes` are those of the program, which may
    lack parameters that its call does not use.

    Raises:
        ExportError: if no fields change all dimensions of the vocabulary, and nothing else.
    """
    base = flat(config)
    start, table = summarize(base), json_table(base)
    known = {dim for name in shapes for dim in _dims_of(name, shapes)}
    for path in _equal(table, axes.rows):
        summary = try_build(type(base), as_text(from_table(type(base), placed(table, path, rows))))
        if not isinstance(summary, str):
            changed = _changed(start.shapes, summary.shapes)
            if changed and changed & known <= axes.dims and _is_of(start.shapes, changed, axes.rows):
                table = placed(table, path, rows)
    new = from_table(type(base), table)
    changed = _changed(start.shapes, summarize(new).shapes)
    if lacking := sorted(axes.dims & {dim for name in start.shapes for dim in _dims_of(name, start.shapes)} - changed):
        name, dim = lacking[0]
        raise ExportError(
            f"no field of {type(config).__name__} changes dimension {dim} of {name}, which has {axes.rows:,} indices "
            "for tokens, without changing something else"
        )
    return new, changed


def json_table(config: Any) -> dict[str, Any]:
    """All values of a configuration."""
    table: dict[str, Any] = config.to_dict()
    return table


def _dims_of(name: str, shapes: Shapes) -> Iterator[TensorDim]:
    return ((name, dim) for dim in range(len(shapes[name])))


def _equal(value: Any, size: int, path: Path = ()) -> Iterator[Path]:
    """Paths of the numbers of a configuration that are a size."""
    if isinstance(value, int) and not isinstance(value, bool) and value == size:
        yield path
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _equal(item, size, (*path, key))


def _changed(before: Shapes, after: Shapes) -> frozenset[TensorDim]:
    """Dimensions whose size differs."""
    pairs = ((name, before[name], after[name]) for name in before if name in after)
    return frozenset(
        (name, dim) for name, a, b in pairs for dim, (x, y) in enumerate(zip(a, b, strict=False)) if x != y
    )


def _is_of(shapes: Shapes, dims: frozenset[TensorDim], size: int) -> bool:
    return all(shapes[name][dim] == size for name, dim in dims)
