"""Orders and running results along a dimension, which stays as it is unless what is masked adds nothing."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import fx

from graphprune.axes.rule import Dims, Example, Flow, MaskedArguments, Rule, Zeros
from graphprune.axes.rule_helpers import argument, between_layers, canonical_dim, canonical_dims, literal
from graphprune.passes.operators import RULES, rule

aten = torch.ops.aten


class Along(Rule):
    """Indices meet along some dimensions, so that all stay."""

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


def named(node: fx.Node, rank: int) -> list[int]:
    """The dimensions that the second argument names."""
    return canonical_dims(literal(node, 1), rank)


def rolled(node: fx.Node, rank: int) -> list[int]:
    """The dimensions that the third argument names, all if it names none."""
    return canonical_dims(argument(node, 2, "dims"), rank)


def matrix(node: fx.Node, rank: int) -> list[int]:
    """The last two dimensions."""
    return [rank - 2, rank - 1]


RULES.register(aten.flip.default)(Along(Zeros.MOVED, named))
RULES.register(aten.roll.default)(Along(Zeros.MOVED, rolled))
RULES.register(aten.triu.default, aten.tril.default)(Along(Zeros.PRESERVED, matrix))
RULES.register(aten.cumprod.default)(Along(Zeros.PRESERVED, named))
RULES.register(aten.logcumsumexp.default)(Along(Zeros.LOST, named))


@rule(aten.cummax.default, aten.cummin.default)
class RunningExtreme(Rule):
    """Two outputs: the greatest so far, and where it was."""

    zeros = Zeros.LOST

    def axes(self, flow: Flow, node: fx.Node) -> list[Dims]:
        dims = flow.dims(node.args[0])
        flow.pin(dims[canonical_dim(literal(node, 1), len(dims))], "the order of its indices matters here")
        return [dims, dims]

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y.cummax(1)[0])


@rule(aten.diagonal.default)
class Diagonal(Rule):
    """The entries at equal indices of two dimensions become a dimension at the end."""

    zeros = Zeros.MOVED

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        gone = canonical_dims([argument(node, 2, "dim1", 0), argument(node, 3, "dim2", 1)], len(dims))
        new = flow.fresh(node, "it is a diagonal")
        for i in gone:
            flow.pin(dims[i], "a diagonal is taken from it")
        return *(axis for i, axis in enumerate(dims) if i not in gone), new[-1]

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y + y.diagonal(0, 1, 2)[..., :1, None] + y.diagonal(0, 0, 1).sum(1))


@rule(aten.cumsum.default)
class RunningSum(Rule):
    """What is masked adds nothing to the sums behind it."""

    degree = 1.0

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        axis = dims[canonical_dim(literal(node, 1), len(dims))]
        flow.contract(axis, node.args[0])
        flow.share_selection(dims, [axis])
        return dims

    def masked_value(self, node: fx.Node, inputs: MaskedArguments) -> float | None:
        """Along the dimension itself, the sums go on where nothing is added."""
        running = canonical_dim(literal(node, 1), node.meta["val"].dim()) in inputs.dims
        return None if running else super().masked_value(node, inputs)

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y.cumsum(1) * y.cumsum(2))
        yield between_layers(lambda y: y.view(-1, 5, 2, 4).cumsum(2).flatten(2))
