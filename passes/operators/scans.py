"""Operators along an ordered dimension, which is pinned unless masked entries add zero to a cumulative sum."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import fx

from graphprune.axes.rule import Dims, Example, Flow, MaskedArguments, Rule, Zeros
from graphprune.axes.rule_helpers import argument, between_layers, canonical_dim, canonical_dims, literal
from graphprune.passes.operators import RULES, rule

aten = torch.ops.aten


class Ordered(Rule):
    """Operators that depend on the order of indices along some dimensions, which are pinned."""

    def __init__(self, zeros: Zeros, dims: Callable[[fx.Node, int], Sequence[int]]) -> None:
        self.zeros, self.dims = zeros, dims

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        for i in self.dims(node, len(dims)):
            flow.pin(dims[i], "the order of its indices matters here")
        return dims

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y.flip(1) + y.cumprod(1))
        yield between_layers(lambda y: y.roll(2, 1) + y.tril())
        yield between_layers(lambda y: y.permute(2, 0, 1).tril().permute(1, 2, 0).flip(2))


def named_dims(node: fx.Node, rank: int) -> list[int]:
    """Dimensions in the second argument."""
    return canonical_dims(literal(node, 1), rank)


def rolled_dims(node: fx.Node, rank: int) -> list[int]:
    """Dimensions in the third argument, all of them without one."""
    return canonical_dims(argument(node, 2, "dims"), rank)


def matrix_dims(node: fx.Node, rank: int) -> list[int]:
    """Indices of the last two dimensions."""
    return [rank - 2, rank - 1]


RULES.register(aten.flip.default)(Ordered(Zeros.MOVED, named_dims))
RULES.register(aten.roll.default)(Ordered(Zeros.MOVED, rolled_dims))
RULES.register(aten.triu.default, aten.tril.default)(Ordered(Zeros.PRESERVED, matrix_dims))
RULES.register(aten.cumprod.default)(Ordered(Zeros.PRESERVED, named_dims))
RULES.register(aten.logcumsumexp.default)(Ordered(Zeros.LOST, named_dims))


@rule(aten.cummax.default, aten.cummin.default)
class CumulativeExtreme(Rule):
    """Cumulative maximum or minimum, and its index, as two outputs."""

    zeros = Zeros.LOST

    def axes(self, flow: Flow, node: fx.Node) -> list[Dims]:
        dims = flow.dims(node.args[0])
        flow.pin(dims[canonical_dim(literal(node, 1), len(dims))], "the order of its indices matters here")
        return [dims, dims]

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y.cummax(1)[0])


@rule(aten.diagonal.default)
class Diagonal(Rule):
    """Entries at equal indices of two dimensions become a last dimension."""

    zeros = Zeros.MOVED

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        removed = canonical_dims([argument(node, 2, "dim1", 0), argument(node, 3, "dim2", 1)], len(dims))
        new = flow.fresh(node, "it is a diagonal")
        for i in removed:
            flow.pin(dims[i], "a diagonal is taken from it")
        return *(axis for i, axis in enumerate(dims) if i not in removed), new[-1]

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y + y.diagonal(0, 1, 2)[..., :1, None] + y.diagonal(0, 0, 1).sum(1))


@rule(aten.cumsum.default)
class CumulativeSum(Rule):
    """Cumulative sum: masked entries add zero to the later sums."""

    degree = 1.0

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        axis = dims[canonical_dim(literal(node, 1), len(dims))]
        flow.contract(axis, node.args[0])
        flow.share_selection(dims, [axis])
        return dims

    def masked_value(self, node: fx.Node, inputs: MaskedArguments) -> float | None:
        """The masked number; unknown along the summed dimension, where sums continue past masked entries."""
        cumulative = canonical_dim(literal(node, 1), node.meta["val"].dim()) in inputs.dims
        return None if cumulative else super().masked_value(node, inputs)

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y.cumsum(1) * y.cumsum(2))
        yield between_layers(lambda y: y.view(-1, 5, 2, 4).cumsum(2).flatten(2))
