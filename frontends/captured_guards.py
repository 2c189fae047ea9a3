"""Guards of an exported program, which torch.export checks before it runs: ranges, equal sizes, decisions by sizes."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils._sympy.printers import PythonPrinter

from graphprune.ir.guards import Guard

_SMALLEST = 2  # torch.export assumes sizes of at least two, and does not check it


def guards(exported: ExportedProgram, module: fx.GraphModule, inputs: tuple[Any, Any]) -> tuple[list[Guard], list[str]]:
    """Guards of `exported`, whose unlifted module is `module`, and those conditions that cannot be evaluated."""
    nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
    leaves, names = pytree.tree_leaves(inputs), tuple(node.name for node in nodes)
    codes = [*_sizes(nodes, exported), *_decisions(exported, module, inputs)]
    known, unknown = [], []
    for code in dict.fromkeys(codes):
        guard = Guard(code, names)
        if _is_known(guard, leaves):
            known.append(guard)
        else:
            unknown.append(code)
    return known, unknown


def _is_known(guard: Guard, leaves: Sequence[Any]) -> bool:
    try:
        return guard.holds(leaves)
    except Exception:  # a condition of a file may be anything
        return False


def _sizes(nodes: Sequence[fx.Node], exported: ExportedProgram) -> Iterator[str]:
    """Ranges of dynamic sizes, and sizes that are equal or follow from another."""
    places: dict[Any, str] = {}
    derived: list[tuple[Any, str]] = []
    for i, node in enumerate(nodes):
        value = node.meta.get("val")
        sizes = enumerate(value.shape) if isinstance(value, Tensor) else [(None, value)]
        for dim, size in sizes:
            if not isinstance(size, torch.SymInt) or size.node.maybe_as_int() is not None:
                continue
            place, expression = f"args[{i}]" if dim is None else f"args[{i}].size()[{dim}]", size.node.expr
            if not expression.is_Symbol:
                derived.append((expression, place))
            elif expression in places:
                yield f"{place} == {places[expression]}"
            else:
                places[expression] = place
                yield from _range(exported.range_constraints.get(expression), place)
    names = {str(symbol): place for symbol, place in places.items()}
    for expression, place in derived:
        yield f"{place} == {_named(PythonPrinter().doprint(expression), names)}"


def _range(bounds: Any, place: str) -> Iterator[str]:
    lower, upper = (str(bounds.lower), str(bounds.upper)) if bounds is not None else ("", "")
    if lower.isdigit() and int(lower) > _SMALLEST:
        yield f"{place} >= {lower}"
    if upper.isdigit():  # and not infinite
        yield f"{place} <= {upper}"


def _named(code: str, names: Mapping[str, str]) -> str:
    return re.sub(r"\b[a-z]+\d+\b", lambda match: names.get(match[0], match[0]), code)


def _decisions(exported: ExportedProgram, module: fx.GraphModule, inputs: tuple[Any, Any]) -> Iterator[str]:
    """Conditions that decided what was captured, with positions of inputs in the place of their names."""
    codes: list[str] = exported._guards_code
    if not codes:
        return
    positions = _positions(module, inputs)
    for code in codes:
        yield _replaced(code, positions)


def _replaced(code: str, positions: Mapping[str, str]) -> str:
    for name, position in positions.items():
        code = code.replace(name, position)
    return code


def _positions(module: fx.GraphModule, inputs: tuple[Any, Any]) -> dict[str, str]:
    """Position of each leaf by the names that conditions have for it, the longest first."""
    args, kwargs = inputs
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    try:
        paths = [f"L{pytree.keystr(path)}" for path, _ in pytree.tree_flatten_with_path(dict(bound.arguments))[0]]
    except ValueError:  # a registered class without names of its parts
        paths = [f"L['flat_args'][{i}]" for i, _ in enumerate(pytree.tree_leaves(inputs))]
    positions = {path: f"args[{i}]" for i, path in enumerate(paths)}
    for i, path in enumerate(paths):
        positions.setdefault(f"L['flat_args'][{i}]", f"args[{i}]")
        positions.setdefault(re.sub(r"_(\d+)'\]", r"'][\1]", path, count=1), f"args[{i}]")  # of *args: xs_0 is xs[0]
    return dict(sorted(positions.items(), key=lambda item: -len(item[0])))
