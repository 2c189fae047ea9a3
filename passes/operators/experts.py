"""Mixtures of experts: rows are sorted by expert, and each segment of rows is multiplied by its expert's matrix."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphprune.axes.algebra import Misaligned
from graphprune.axes.rule import Cut, Dims, Example, Flow, OpCall, Rule, Zeros
from graphprune.axes.rule_helpers import argument, literal, report_stack
from graphprune.passes.operators import RULES, rule

aten = torch.ops.aten


class GroupedProduct(Rule):
    """``x (s i), weight (e i o), offsets (e) -> (s o)``; expert j multiplies rows offsets[j - 1] to offsets[j]."""

    linear_in = (0, 1)
    selects = (2,)

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        x, weight, offsets = (flow.dims(value) for value in node.args[:3])
        if (len(x), len(weight), len(offsets)) != (2, 3, 1) or argument(node, 3, "bias") is not None:
            raise Misaligned("a grouped product other than of rows with a stack of matrices")
        (rows, inner), (experts, columns, out) = x, weight
        flow.unify(experts, offsets[0])
        flow.mark_inexact(experts, "rows are partitioned along it")
        if isinstance(node.args[2], fx.Node) and node.args[2].op == "get_attr":
            flow.pin(experts, "a constant partitions its rows")
        flow.pin(rows, "offsets partition it")
        flow.unify(inner, columns)
        flow.contract(inner, *node.args[:2])
        flow.count_macs(rows, inner, out)
        partitioned = flow.has_row_partition(node.args[0], node.args[2])
        flow.share_selection([inner], [rows, out] if partitioned else [rows, experts, out])
        flow.partition_rows(node, experts, node.args[2])
        flow.produce(node.args[1], 2)
        if isinstance(node.args[2], fx.Node) and node.args[2].op == "call_function":
            report_stack(flow, node, node.args[0], node.args[1], node.args[2])
        for axis in (inner, out):  # the kernels need rows of a multiple of 16 bytes; the fallback stands in for them
            flow.require_width(axis, 1, 16 // flow.element_size(node))
        return rows, out

    def examples(self) -> Iterator[Example]:
        import_module("transformers.integrations.moe")  # registers the operator; its rule is looked up by name
        yield Example(_Experts(biased=True), (torch.randn(7, 6),))
        yield Example(_Experts(biased=False), (torch.randn(7, 6),))


RULES.register(aten._grouped_mm.default, "transformers.grouped_mm_fallback.default")(GroupedProduct())


@rule(aten.histc.default)
class Histogram(Rule):
    """Counts of values per bin: for indices, the bins are the axis into which they point."""

    zeros = Zeros.LOST
    selects = (0,)

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        new = flow.fresh(node)
        if (argument(node, 2, "min"), argument(node, 3, "max")) != (0, new[0].size - 1):
            raise Misaligned("a histogram whose bins are not the integers from 0")
        for axis in flow.dims(node.args[0]):
            flow.mark_inexact(axis, "its values are counted here")
        flow.look_up(new[0], node.args[0])
        return new

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        bins = cut.width(cut.dims(node)[0])
        return OpCall(node.target, (node.args[0], bins, 0, bins - 1), {})


@rule(aten.one_hot.default)
class OneHot(Rule):
    """One-hot vectors along a new dimension: the axis into which the indices point."""

    zeros = Zeros.LOST
    selects = (0,)

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        new = flow.fresh(node)[-1]
        flow.look_up(new, node.args[0])
        return *flow.dims(node.args[0]), new

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        count = cut.dims(node)[-1]
        return OpCall(node.target, (node.args[0], cut.width(count) if cut.changed(count) else literal(node, 1)), {})

    def examples(self) -> Iterator[Example]:
        yield Example(_Masked(), (torch.randn(7, 6),))


class _Experts(nn.Module):
    """An example: four experts, two of which process every row."""

    def __init__(self, biased: bool) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 6, 16)), nn.Parameter(torch.randn(4, 8, 3))
        self.bias = nn.Parameter(torch.randn(4, 16)) if biased else None

    def forward(self, x: Tensor) -> Any:
        weights, chosen = self.router(x).softmax(1).topk(2)
        expert, order = chosen.flatten().sort()
        offsets = torch.histc(expert.float(), 4, 0, 3).cumsum(0, dtype=torch.int32)
        product = torch.ops.transformers.grouped_mm_fallback
        y = product(x[order // 2], self.up, offsets)
        a, b = (y if self.bias is None else y + self.bias[expert]).chunk(2, dim=1)
        rows = product(torch.relu(a) * b, self.down, offsets) * weights.flatten()[order, None]
        return torch.zeros_like(rows).index_put((order,), rows).view(-1, 2, 3).sum(1)


class _Masked(nn.Module):
    """An example: every expert processes every row, and rows routed to other experts are multiplied by zero."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 6, 8)), nn.Parameter(torch.randn(4, 8, 3))

    def forward(self, x: Tensor) -> Any:
        weights, chosen = self.router(x).topk(2)
        gates = (nn.functional.one_hot(chosen, 4) * weights.sigmoid()[:, :, None]).sum(1)
        rows = torch.bmm(torch.relu(torch.bmm(x.expand(4, -1, -1), self.up)), self.down)
        return (rows * gates.T[:, :, None]).sum(0)
