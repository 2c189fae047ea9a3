"""Tensors created in the graph: constant ones follow a cut, all others are pinned."""

from collections.abc import Iterator
from math import isfinite

import torch
from torch import fx

from graphprune.axes.rule import Cut, Dims, Example, Flow, MaskedArguments, OpCall, Rule, Zeros
from graphprune.axes.rule_helpers import argument, between_layers
from graphprune.passes.operators import RULES, rule

aten = torch.ops.aten


class ConstantFill(Rule):
    """A tensor filled with one number; `sizes` is the argument position of its literal sizes."""

    def __init__(self, sizes: int) -> None:
        self.sizes = sizes

    def masked_value(self, node: fx.Node, inputs: MaskedArguments) -> float | None:
        kind = str(node.target)
        value = argument(node, self.sizes + 1, "fill_value") if "full" in kind else 1 if "ones" in kind else 0
        number = None if "empty" in kind else inputs.number_of(value)
        if number is None or not isfinite(number):
            return None
        return float(torch.tensor(number).to(node.meta["val"].dtype).real)

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        return flow.fresh(node)

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        old = argument(node, self.sizes, "size")
        new = [cut.width(a) if cut.changed(a) else size for a, size in zip(cut.dims(node), old, strict=True)]
        return OpCall(node.target, (*node.args[: self.sizes], new, *node.args[self.sizes + 1 :]), dict(node.kwargs))

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y * torch.full((5, 8), 2.0))
        yield between_layers(lambda y: y - y.new_ones(8))
        yield between_layers(lambda y: torch.maximum(y + y.new_zeros(5, 8), torch.zeros(8)))


RULES.register(aten.full.default, aten.zeros.default, aten.ones.default, aten.empty.memory_format)(ConstantFill(0))
RULES.register(aten.new_ones.default, aten.new_zeros.default, aten.new_full.default, aten.new_empty.default)(
    ConstantFill(1)
)


class GeneratedTensor(Rule):
    """A tensor whose numbers depend on the index."""

    zeros = Zeros.LOST

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        return flow.fresh(node, "its values are generated")

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y * torch.arange(8))


RULES.register(
    aten.arange.default, aten.arange.start, aten.arange.start_step, aten.scalar_tensor.default, aten.eye.default,
    aten.eye.m, aten.linspace.default, aten.randn.default, aten.rand.default, aten.randint.default, aten.randint.low,
)(GeneratedTensor())  # fmt: skip


@rule(aten.empty_like.default)
class EmptyLike(Rule):
    """An uninitialized tensor in the shape of a value."""

    zeros = Zeros.LOST
    shape_alone = True

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        return flow.dims(node.args[0])

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: torch.empty_like(y).copy_(y))


@rule(aten.fill.Tensor)
class Fill(EmptyLike):
    """A tensor in the shape of a value, filled with the number in another tensor."""

    def masked_value(self, node: fx.Node, inputs: MaskedArguments) -> float | None:
        return inputs.number_of(node.args[1])

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: aten.fill(y, torch.tensor(0.5)) * y)


class RandomLike(EmptyLike):
    """Random numbers in the shape of a value, which depend on that shape."""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        for axis in flow.dims(node.args[0]):
            flow.pin(axis, "its values are drawn at random")
        return flow.dims(node.args[0])

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y + torch.randn_like(y))


RULES.register(aten.rand_like.default, aten.randn_like.default, aten.bernoulli.p)(RandomLike())
