"""Interleaved repetition of indices: the copies are an axis inside the old one."""

from collections.abc import Iterator

import torch
from torch import fx

from graphprune.axes.algebra import Misaligned, Product, factor, resolve
from graphprune.axes.rule import Cut, Dims, Example, Flow, OpCall, Rule, Zeros
from graphprune.axes.rule_helpers import argument, between_layers, canonical_dim, literal
from graphprune.passes.operators import rule

aten = torch.ops.aten


@rule(aten.repeat_interleave.self_int)
class RepeatEach(Rule):
    """Repetition of every index of a dimension, equally often."""

    zeros = Zeros.MOVED
    degree = 1.0

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims, new = flow.dims(node.args[0]), flow.fresh(node)
        if argument(node, 2, "dim") is None and len(dims) != 1:
            raise Misaligned("all dimensions are merged and repeated")
        dim = canonical_dim(argument(node, 2, "dim") or 0, len(dims))
        if new[dim].size == dims[dim].size:
            return dims
        old, copies = factor(new[dim], dims[dim].size)
        flow.unify(old, dims[dim])
        if not isinstance(literal(node, 1), int):
            flow.pin(copies, "the number of copies depends on the input")
        return *dims[:dim], resolve(Product((old, copies))), *dims[dim + 1 :]

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        dim = canonical_dim(argument(node, 2, "dim") or 0, len(cut.dims(node)))
        old, new = cut.dims(node.args[0])[dim], cut.dims(node)[dim]
        if not cut.changed(new) or not isinstance(literal(node, 1), int):
            return OpCall(node.target, node.args[:3], {k: v for k, v in node.kwargs.items() if k != "output_size"})
        return OpCall(node.target, (node.args[0], cut.width(new) // cut.width(old), dim), {})

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y.repeat_interleave(2, dim=2) * 2, 16)
        yield between_layers(lambda y: y.repeat_interleave(len(y), dim=1) * y.repeat_interleave(1, dim=2)[:, :1])


@rule(aten.repeat_interleave.self_Tensor)
class RepeatSome(Rule):
    """Repetition of every index as often as given in a tensor."""

    zeros = Zeros.MOVED
    selects = (1,)

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims, why = flow.dims(node.args[0]), "a tensor holds how often each index is repeated"
        new = flow.fresh(node, why)
        if argument(node, 2, "dim") is None and len(dims) != 1:
            raise Misaligned("all dimensions are merged and repeated")
        dim = canonical_dim(argument(node, 2, "dim") or 0, len(dims))
        for axis in (dims[dim], *flow.dims(node.args[1])):
            flow.pin(axis, why)
        flow.look_up(dims[dim], node.args[1])  # indices that are counts are no longer indices
        return *dims[:dim], new[dim], *dims[dim + 1 :]

    def examples(self) -> Iterator[Example]:
        times = torch.tensor([2, 0, 1, 0, 2])
        yield between_layers(lambda y: y.repeat_interleave(times, dim=1, output_size=5) * y)
