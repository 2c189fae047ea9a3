"""Linear layers and matrix products: one axis is contracted, the others pass through."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphprune.axes.algebra import Axis, Misaligned
from graphprune.axes.rule import Dims, Example, Flow, Rule
from graphprune.axes.rule_helpers import between_layers, broadcast, report_linear, report_stack
from graphprune.passes.operators import RULES

aten = torch.ops.aten


class Linear(Rule):
    """``x (... i), weight (o i), bias (o) -> (... o)``"""

    summands = (2,)
    linear_in = (0, 1)

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        x, weight = node.args[:2]
        if len(flow.dims(weight)) != 2:
            raise Misaligned("a weight that is a vector")
        *batch, inner = flow.dims(x)
        out, columns = flow.dims(weight)
        flow.unify(inner, columns)
        flow.contract(columns, x, weight)
        flow.share_selection([columns], [*batch, out])
        flow.count_macs(*batch, inner, out)
        report_linear(flow, node, x, weight, 1, bias_at=2)
        if len(node.args) > 2 and node.args[2] is not None:
            flow.unify(out, flow.dims(node.args[2])[0])
        return *batch, out

    def examples(self) -> Iterator[Example]:
        yield Example(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), (torch.randn(3, 6),))
        yield Example(
            nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 8), nn.Linear(8, 2)), (torch.randn(3, 5, 6),)
        )


class MatMul(Rule):
    """``a (... m k), b (... k n) -> (... m n)``, with leading dimensions broadcast."""

    linear_in = (0, 1)

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        return matmul_dims(flow, node, node.args[0], node.args[1])

    def examples(self) -> Iterator[Example]:
        yield Example(_Scores(), (torch.randn(2, 5, 6),))


class AddMM(Rule):
    """``bias + a @ b``"""

    summands = (0,)

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        product = matmul_dims(flow, node, node.args[1], node.args[2], bias_at=None if node.kwargs else 0)
        return broadcast(flow, [product, flow.dims(node.args[0])])

    def examples(self) -> Iterator[Example]:
        yield Example(_Transposed(), (torch.randn(3, 6),))
        yield between_layers(lambda y: torch.baddbmm(y[:1, :, :1].repeat(len(y), 1, 1), y, y.transpose(1, 2)), 5)


RULES.register(aten.linear.default)(Linear())
RULES.register(aten.mm.default, aten.bmm.default, aten.matmul.default)(MatMul())
RULES.register(aten.addmm.default, aten.baddbmm.default)(AddMM())


def matmul_dims(flow: Flow, node: fx.Node, a: Any, b: Any, bias_at: int | None = None) -> Dims:
    """The axes of ``a @ b``."""
    left, right = flow.dims(a), flow.dims(b)
    if min(len(left), len(right)) < 2:
        return _with_vector(flow, a, b, left, right)
    (*lead_a, rows, inner), (*lead_b, columns, out) = left, right
    flow.unify(inner, columns)
    flow.contract(inner, a, b)
    flow.share_selection([inner], [rows, out])
    if len(right) == 2:
        flow.share_selection([inner], lead_a)
        report_linear(flow, node, a, b, 0, bias_at)
    if len(left) == len(right) == 3:
        report_stack(flow, node, a, b)
    lead = broadcast(flow, [tuple(lead_a), tuple(lead_b)])
    flow.count_macs(*lead, rows, inner, out)
    return *lead, rows, out


def _with_vector(flow: Flow, a: Any, b: Any, left: Dims, right: Dims) -> Dims:
    inner, columns = left[-1], right[-2] if len(right) > 1 else right[0]
    flow.unify(inner, columns)
    flow.contract(inner, a, b)
    rest: list[Axis] = [*left[:-1], *right[:-2], *right[-1:]] if len(right) > 1 else list(left[:-1])
    flow.share_selection([inner], rest)
    return tuple(rest)


class _Scores(nn.Module):
    """An example: a product of two activations, as in attention scores."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 10)
        self.out = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Any:
        return self.out(torch.tanh(self.q(x) @ self.k(x).transpose(1, 2)) @ self.v(x))


class _Transposed(nn.Module):
    """An example: weights stored as (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8))
        self.w2, self.b2 = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Any:
        return torch.addmm(self.b2, torch.relu(torch.addmm(self.b1, x, self.w1)), self.w2)
