"""Values made from nothing: uniform ones follow a cut, all others stay."""

import torch
from torch import fx

from graphprune.contracts import Call, Cut, Dims, Flow, Rule, Zeros
from graphprune.dimensions import argument
from graphprune.passes.operators import RULES

aten = torch.ops.aten


class Uniform(Rule):
    """One number everywhere: its sizes are literals."""

    zeros = Zeros.LOST

    def __init__(self, sizes: int) -> None:
        self.sizes = sizes

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        return flow.fresh(node)

    def rebuild(self, cut: Cut, node: fx.Node) -> Call:
        old = argument(node, self.sizes, "size")
        new = [cut.width(a) if cut.changed(a) else size for a, size in zip(cut.dims(node), old, strict=True)]
        return Call(node.target, (*node.args[: self.sizes], new, *node.args[self.sizes + 1 :]), dict(node.kwargs))


RULES.register(aten.full.default, aten.zeros.default, aten.ones.default, aten.empty.memory_format)(Uniform(0))
RULES.register(aten.new_ones.default, aten.new_zeros.default, aten.new_full.default, aten.new_empty.default)(Uniform(1))


class Generated(Rule):
    """Numbers that differ from index to index."""

    zeros = Zeros.LOST

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        return flow.fresh(node, "its values are generated")


RULES.register(aten.arange.default, aten.arange.start, aten.arange.start_step, aten.scalar_tensor.default)(Generated())


class Along(Rule):
    """Masks and running sums: indices meet along a dimension, so that all stay."""

    zeros = Zeros.LOST

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        for axis in dims:
            flow.pin(axis, "the order of its indices matters here")
        return dims


RULES.register(aten.cumsum.default, aten.triu.default, aten.tril.default, aten.flip.default, aten.roll.default)(Along())
