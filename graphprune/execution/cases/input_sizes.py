"""Sizes of inputs other than the traced ones, within the ranges that the trace allows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.ir.program import Inputs, Program

BATCH = 5  # a size of the first dimension that few examples have
SHORT = 3  # size of a dimension other than the batch
UNLIMITED = 1 << 40
WIDE = 64  # a traced size from which on three times as much would take too long

Symbol = Any  # of sympy, which has no types
Sizes = Mapping[Symbol, int]


@dataclass(frozen=True)
class Dynamic:
    """Size that may change: its traced value, its limits, and whether it is the first of a tensor, as a batch is."""

    traced: int
    low: int
    high: float
    batch: bool

    def nearest(self, size: int) -> int:
        """The allowed size next to this one."""
        return int(min(max(size, self.low), self.high))

    def large(self) -> int:
        """Odd size of three times the traced one; a batch is as small as it may be."""
        if self.batch:
            return self.nearest(1)
        return self.nearest((3 * self.traced if self.traced < WIDE else self.traced * 3 // 2) | 1)

    def small(self) -> int:
        """Small odd size; a batch is larger than the traced one."""
        if self.batch:
            return self.nearest(BATCH if self.traced != BATCH else BATCH + 2)
        return self.nearest(SHORT if self.traced < WIDE else self.traced // 2 | 1)


def leaves(program: Program) -> list[tuple[fx.Node, Any]]:
    """Placeholders and the leaves of the example."""
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    return list(zip(nodes, program.flat(*program.inputs), strict=True))


def structured(program: Program, flat: list[Any]) -> Inputs:
    """Arguments with these leaves, in the order of the placeholders."""
    spec = pytree.tree_structure((program.inputs[0], dict(program.inputs[1])))
    args, kwargs = pytree.tree_unflatten(flat, spec)
    return args, kwargs


def dynamic_sizes(program: Program) -> dict[Symbol, Dynamic]:
    """Sizes of the inputs that may change, by their symbol."""
    known: dict[Symbol, Dynamic] = {}
    for node, _ in leaves(program):
        for dim, size in enumerate(_sizes(node.meta.get("val"))):
            for symbol in _symbols(size):
                if symbol not in known or dim == 0:
                    known[symbol] = _dynamic(size, symbol, dim == 0)
    return known


def candidates(program: Program, kind: str) -> Iterator[Sizes]:
    """Sizes to try in this order, the farthest from the traced ones first; `kind` is traced, large or small."""
    dynamic = dynamic_sizes(program)
    traced = {symbol: size.traced for symbol, size in dynamic.items()}
    tried: list[Sizes] = []
    if kind != "traced" and dynamic:
        only_batch = all(size.batch for size in dynamic.values())  # then its largest size is that of the large kind
        grow = (kind == "large") != only_batch
        far = {symbol: size.large() if grow else size.small() for symbol, size in dynamic.items()}
        double = {symbol: size.nearest(2 * size.traced) for symbol, size in dynamic.items()}
        batch = {symbol: far[symbol] if size.batch else size.traced for symbol, size in dynamic.items()}
        more = {symbol: size.nearest(size.traced + 1) for symbol, size in dynamic.items()}
        tried = [far, double, batch, more]
    for i, sizes in enumerate([*tried, traced]):
        if sizes not in tried[:i]:
            yield sizes


def evaluate(size: Any, sizes: Sizes) -> int:
    """Number of a size that may be an expression of symbols."""
    if isinstance(size, int) or not (symbols := _symbols(size)):
        return int(size)
    known = {symbol: sizes[symbol] for symbol in symbols if symbol in sizes}
    return int(size.node.expr.subs(known)) if len(known) == len(symbols) else int(size)


def describe(inputs: Inputs, program: Program) -> str:
    """Shapes of the inputs whose sizes may change, by name, such as "ids 2x8"."""
    args, kwargs = inputs
    pairs = zip(leaves(program), program.flat(args, kwargs), strict=True)
    shapes = [
        f"{node.name} {'x'.join(map(str, leaf.shape))}"
        for (node, _), leaf in pairs
        if isinstance(leaf, Tensor) and any(map(_symbols, _sizes(node.meta.get("val"))))
    ]
    return ", ".join(shapes) or "the traced ones"


def _sizes(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return () if value is None or isinstance(value, float | str | bool) else (value,)


def _symbols(size: Any) -> set[Symbol]:
    """Symbols that a size depends on; one may be bound to a number."""
    if isinstance(size, int) or not hasattr(size, "node") or size.node.maybe_as_int() is not None:
        return set()
    return set(getattr(size.node.expr, "free_symbols", ()))


def _dynamic(size: Any, symbol: Symbol, batch: bool) -> Dynamic:
    env = size.node.shape_env
    values = getattr(env, "backed_var_to_val", None) or {}
    traced = int(values[symbol]) if symbol in values else int(size.node.hint)
    limits = env.var_to_range.get(symbol)
    if limits is None:
        return Dynamic(traced, 1, float("inf"), batch)
    return Dynamic(traced, _number(limits.lower, 1), _number(limits.upper, float("inf")), batch)


def _number(limit: Any, otherwise: Any) -> Any:
    """Limit as a number, unless it is beyond all sizes."""
    return int(limit) if bool(limit >= 0) and bool(limit < UNLIMITED) else otherwise
