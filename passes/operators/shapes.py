"""Operators that only rearrange or repeat values: views, permutations, expansions."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import fx, nn

from graphprune.axes.algebra import UNIT, Axis, Misaligned, Product, factor, primes, resolve
from graphprune.axes.rule import Cut, Dims, Example, Flow, OpCall, Rule, Zeros
from graphprune.axes.rule_helpers import DYNAMIC, between_layers, canonical_dim, canonical_dims, literal
from graphprune.passes.operators import RULES, rule

aten = torch.ops.aten


class Reshape(Rule):
    """Views: dimensions are merged and split; runs of dimensions of equal size are the same product of axes."""

    zeros = Zeros.MOVED
    degree = 1.0

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        source, target = flow.dims(node.args[0]), flow.fresh(node)
        result: list[Axis] = []
        for old, new in matching_runs([a.size for a in source], [a.size for a in target]):
            result += regroup(flow, [source[i] for i in old], [target[i] for i in new])
        inferred = [axis for axis, size in zip(result, literal(node, 1), strict=True) if not isinstance(size, int)]
        inferred = [axis for axis in inferred if not all(DYNAMIC in p.pins for p in primes(axis))]
        sizes = zip(result, literal(node, 1), strict=True)
        if len(inferred) + any(size == -1 and _is_dynamic(axis) for axis, size in sizes if isinstance(size, int)) > 1:
            for axis in inferred:
                flow.pin(axis, "a view computes several sizes")
        return tuple(result)

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        sizes = literal_sizes(cut, literal(node, 1), cut.dims(node))
        if sizes.count(-1) > 1:  # sizes that were inferred are known now
            entries = zip(sizes, literal(node, 1), cut.dims(node), strict=True)
            sizes = [cut.width(axis) if isinstance(old, int) and old == -1 else new for new, old, axis in entries]
        return OpCall(node.target, (node.args[0], sizes), dict(node.kwargs))

    def examples(self) -> Iterator[Example]:
        yield Example(
            nn.Sequential(nn.Linear(6, 8), nn.Unflatten(1, (2, 4)), nn.Flatten(1), nn.Linear(8, 3)),
            (torch.randn(3, 6),),
        )


RULES.register(aten.reshape.default, aten.view.default, aten._unsafe_view.default)(Reshape())


class Permute(Rule):
    """Permutation of dimensions."""

    zeros = Zeros.MOVED
    degree = 1.0

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        return tuple(dims[i] for i in self.permutation(node, len(dims)))

    def permutation(self, node: fx.Node, rank: int) -> list[int]:
        """The source of each output dimension."""
        if node.target is aten.permute.default:
            return canonical_dims(node.args[1], rank)
        a, b = canonical_dims(list(node.args[1:3]), rank) if len(node.args) > 1 else (0, rank - 1)
        order = list(range(rank))
        order[a], order[b] = order[b], order[a]
        return order

    def examples(self) -> Iterator[Example]:
        yield Example(_Swapped(), (torch.randn(2, 5, 6),))


RULES.register(aten.permute.default, aten.transpose.int, aten.t.default, aten.swapaxes.default)(Permute())


@rule(aten.unsqueeze.default)
class Unsqueeze(Rule):
    """Insertion of a dimension of size 1."""

    zeros = Zeros.MOVED
    degree = 1.0

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = list(flow.dims(node.args[0]))
        dims.insert(canonical_dim(literal(node, 1), len(dims) + 1), UNIT)
        return tuple(dims)


class Squeeze(Rule):
    """Removal of dimensions of size 1."""

    zeros = Zeros.MOVED
    degree = 1.0

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        candidates = self.candidates(node, len(dims))
        return tuple(axis for i, axis in enumerate(dims) if i not in candidates or axis.size != 1)

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        dims = cut.dims(node.args[0])
        candidates = self.candidates(node, len(dims))
        # An axis that is cut to size 1 must not be removed.
        return OpCall(aten.squeeze.dims, (node.args[0], [i for i in candidates if dims[i].size == 1]), {})

    def candidates(self, node: fx.Node, rank: int) -> list[int]:
        """Dimensions that may be removed: all without an argument, none for an empty list."""
        dims: Any = node.args[1] if len(node.args) > 1 else None
        return [] if dims == [] else canonical_dims(dims, rank)


RULES.register(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)(Squeeze())


class Expand(Rule):
    """Expansion: dimensions of size 1 are stretched, and new ones added in front."""

    zeros = Zeros.MOVED
    repeats = True
    degree = 1.0

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        target = flow.fresh(node)
        source = (UNIT,) * len(target) + flow.dims(node.args[0])
        pairs = zip(source[len(source) - len(target) :], target, strict=True)
        return tuple(new if old.size == 1 else old for old, new in pairs)

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        sizes = literal_sizes(cut, literal(node, 1), cut.dims(node))
        return OpCall(node.target, (node.args[0], sizes), dict(node.kwargs))


RULES.register(aten.expand.default, aten.broadcast_to.default)(Expand())


@rule(aten.repeat.default, aten.tile.default)
class Repeat(Rule):
    """Tiling: the copies are an axis around the old one."""

    zeros = Zeros.MOVED
    degree = 1.0

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        source, target = flow.dims(node.args[0]), flow.fresh(node)
        source = (UNIT,) * (len(target) - len(source)) + source
        return tuple(self.tile(flow, old, new) for old, new in zip(source, target, strict=True))

    def tile(self, flow: Flow, old: Axis, new: Axis) -> Axis:
        """The tiled axis; the axis itself for a single copy."""
        if old.size in (0, new.size):
            return old if old.size else new
        copies, inner = factor(new, new.size // old.size)
        flow.unify(inner, old)
        return resolve(Product((copies, inner)))

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        rank, repeats = len(cut.dims(node)), literal(node, 1)
        source = (UNIT,) * (rank - len(cut.dims(node.args[0]))) + cut.dims(node.args[0])
        pairs = zip(source, cut.dims(node), [1] * (rank - len(repeats)) + list(repeats), strict=True)
        times = [cut.width(new) // cut.width(old) if cut.changed(new) else count for old, new, count in pairs]
        return OpCall(node.target, (node.args[0], times), dict(node.kwargs))

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y.repeat(1, 1, 2), 16)
        yield between_layers(lambda y: y.tile(2), 16)


@rule(aten.meshgrid.indexing, aten.meshgrid.default)
class Meshgrid(Rule):
    """Every vector repeated along the dimensions of all others."""

    zeros = Zeros.LOST

    def axes(self, flow: Flow, node: fx.Node) -> list[Dims]:
        values: Any = node.args[0]
        dims = [flow.dims(value)[0] if flow.dims(value) else UNIT for value in values]
        if node.kwargs.get("indexing") == "xy":
            dims[:2] = dims[1::-1]
        return [tuple(dims)] * len(dims)

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y * torch.meshgrid(torch.arange(8.0), y[0, :, 0], indexing="xy")[1])
        yield between_layers(lambda y: y * sum(torch.meshgrid(y[0, :, 0], y[0, 0], indexing="ij")))


def matching_runs(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The shortest runs of dimensions on both sides with equal numbers of elements, as dimension indices."""
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(left), j + len(right)
        while (a := prod(old[k] for k in left)) != (b := prod(new[k] for k in right)):
            if (i if a < b else j) == len(old if a < b else new):
                raise Misaligned("sizes that depend on the input")
            if a < b:
                left.append(i)
                i += 1
            else:
                right.append(j)
                j += 1
        yield left, right


def regroup(flow: Flow, old: list[Axis], new: list[Axis]) -> list[Axis]:
    """The product of `old`, factored into the sizes of `new`; `new` itself, pinned, if that is not possible."""
    rest = resolve(Product(tuple(old)))
    if len(new) == 1:
        return [rest]
    result = []
    try:
        for axis in new:
            head, rest = factor(rest, axis.size)
            if _is_dynamic(head) != _is_dynamic(axis):
                raise Misaligned("sizes that are equal by chance")
            result.append(head)
    except Misaligned as fault:
        for axis in (*old, *new):
            flow.pin(axis, f"a view mixes it with other dimensions: {fault}")
        return new
    return result


def _is_dynamic(axis: Axis) -> bool:
    return any(DYNAMIC in p.pins for p in primes(axis))


def literal_sizes(cut: Cut, sizes: Sequence[Any], dims: Sequence[Axis]) -> list[Any]:
    """Literal sizes after a cut; -1 and symbols are unchanged, except that a symbol of a narrower axis becomes -1."""
    new: list[Any] = []
    for axis, size in zip(dims, sizes, strict=True):
        unchanged = not cut.changed(axis) or (isinstance(size, int) and size == -1)
        new.append(size if unchanged else cut.width(axis) if isinstance(size, int) else -1)
    return new


class _Swapped(nn.Module):
    """An example: heads as a separate dimension, merged again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x).view(x.shape[0], x.shape[1], 3, 4).transpose(1, 2)
        y = y.permute(0, 2, 1, 3).unsqueeze(2).squeeze(2).expand(-1, -1, 3, 4)
        return self.b(y.reshape(x.shape[0], x.shape[1], 12))
