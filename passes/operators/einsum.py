"""Einstein summation: equal labels are one axis, and labels that the output lacks are contracted."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphprune.axes.rule import Dims, Example, Flow, MaskedArguments, Rule, Zeros
from graphprune.axes.rule_helpers import broadcast, broadcast_axis, canonical_dims, report_linear
from graphprune.passes.operators import RULES

aten = torch.ops.aten
Label = str | int  # a letter, or a dimension of an ellipsis, counted from its end
Terms = tuple[list[list[Label]], list[Label]]


def einsum_terms(node: fx.Node, ranks: Sequence[int]) -> Terms:
    """Labels of an equation such as ``"...ij,jk->...ik"``; without an arrow, the output has those that occur once."""
    text: Any = node.args[0]
    left, arrow, right = text.replace(" ", "").partition("->")
    terms = [_labels(term, rank) for term, rank in zip(left.split(","), ranks, strict=True)]
    labels = list(chain(*terms))
    ellipsis = sorted({label for label in labels if isinstance(label, int)})
    if not arrow:
        right = "..." + "".join(sorted(c for c in set(labels) if isinstance(c, str) and labels.count(c) == 1))
    before, dots, after = right.partition("...")
    return terms, [*before, *(ellipsis if dots else []), *after]


def _labels(term: str, rank: int) -> list[Label]:
    before, _, after = term.partition("...")
    count = rank - len(before) - len(after)
    return [*before, *range(-count, 0), *after]


def bilinear_terms(node: fx.Node, ranks: Sequence[int]) -> Terms:
    """``x (... i), y (... j), weight (o i j) -> (... o)``"""
    lead: list[Label] = list(range(1 - ranks[0], 0))
    return [[*lead, "i"], [*lead, "j"], ["o", "i", "j"]], [*lead, "o"]


def tensordot_terms(node: fx.Node, ranks: Sequence[int]) -> Terms:
    """Labels of tensordot: given dimensions of the first operand are contracted with those of the second."""
    first: list[Label] = [f"a{i}" for i in range(ranks[0])]
    second: list[Label] = [f"b{i}" for i in range(ranks[1])]
    contracted = canonical_dims(node.args[2], ranks[0]) if node.args[2] else []
    for i, j in zip(contracted, canonical_dims(node.args[3], ranks[1]) if contracted else [], strict=True):
        second[j] = first[i]
    summed = {first[i] for i in contracted}
    return [first, second], [label for label in (*first, *second) if label not in summed]


def fixed_terms(equation: str) -> Callable[[fx.Node, Sequence[int]], Terms]:
    """Labels of an operator with a fixed equation."""
    left, _, right = equation.partition("->")
    return lambda node, ranks: ([list(term) for term in left.split(",")], list(right))


class Contraction(Rule):
    """Products of operands, summed over the labels that the output lacks."""

    zeros = Zeros.PRODUCT

    def __init__(self, terms: Callable[[fx.Node, Sequence[int]], Terms], operands: slice = slice(0, 2)) -> None:
        self.terms, self.operands = terms, operands

    def values(self, node: fx.Node) -> Sequence[Any]:
        """The operands of a call."""
        values: Any = node.args[1] if node.target is aten.einsum.default else node.args[self.operands]
        return values  # type: ignore[no-any-return]

    def factors(self, node: fx.Node, inputs: MaskedArguments) -> Sequence[object]:
        """The operands that have the axis under a label that the output has."""
        values = self.values(node)
        terms, out = self.terms(node, [value.meta["val"].dim() for value in values])
        labels = {out[i] for i in inputs.dims}
        pairs = zip(values, terms, strict=True)
        return [value for value, term in pairs if any(term[i] in labels for i in inputs.places.get(value, ()))]

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        values = self.values(node)
        terms, out = self.terms(node, [len(flow.dims(value)) for value in values])
        axes = {label: self.axis(flow, label, terms, values) for label in chain(*terms)}
        if len(terms) == 2:
            flow.count_macs(*axes.values())
        for summed in (label for label in axes if label not in out):
            sharing = [set(term) for term in terms if summed in term]
            operands = [value for value, term in zip(values, terms, strict=True) if summed in term]
            flow.contract(axes[summed], *operands)
            others = [axes[other] for other in axes if not all(other in term for term in sharing)]
            flow.share_selection([axes[summed]], others)
            self.report(flow, node, summed, terms, out, values)
        return tuple(axes[label] for label in out)

    def axis(self, flow: Flow, label: Label, terms: list[list[Label]], values: Sequence[object]) -> Any:
        """The common axis of all dimensions with a label."""
        places = [
            axis
            for term, value in zip(terms, values, strict=True)
            for own, axis in zip(term, flow.dims(value), strict=True)
            if own == label
        ]
        return broadcast_axis(flow, places)

    def report(
        self,
        flow: Flow,
        node: fx.Node,
        summed: Label,
        terms: list[list[Label]],
        out: list[Label],
        values: Sequence[Any],
    ) -> None:
        """Report a linear operator if a matrix is contracted with the last dimension of the other operand."""
        for i, (x, weight) in enumerate((values, values[::-1]) if len(values) == 2 else ()):
            left, right = terms[i], terms[1 - i]
            if left[-1:] != [summed] or len(right) != 2 or right.count(summed) != 1 or set(right) & set(left[:-1]):
                continue
            if flow.dims(weight)[right.index(summed)].size == flow.dims(x)[-1].size:  # neither is stretched
                produced = [label for label in right if label != summed]
                report_linear(flow, node, x, weight, right.index(summed), last=out == [*left[:-1], *produced])

    def examples(self) -> Iterator[Example]:
        x = torch.randn(2, 5, 6)
        yield Example(_Letters("bsi,oi->bso", "bsi,bti->bst", "...st,...to->...so"), (x,))
        yield Example(_Letters("bsi,oi", "bis,bti->bst", "bst,bto->bso"), (x,))
        yield Example(_Letters("...i,oi->...o", "bsi,bti->bst", "bst,bto->bso"), (x,))
        yield Example(_Heads(), (x,))
        yield Example(_Stretched(), (torch.randn(2, 6),))
        yield Example(_Others(), (torch.randn(2, 6),))


class Added(Contraction):
    """A contraction that is added to the first argument."""

    zeros = Zeros.PRESERVED
    summands = (0,)

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        return broadcast(flow, [super().axes(flow, node), flow.dims(node.args[0])])


class Biased(Contraction):
    """A contraction to which the last argument is added."""

    zeros = Zeros.PRESERVED
    summands = (3,)

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        bias = node.args[3] if len(node.args) > 3 else None
        return broadcast(flow, [super().axes(flow, node), flow.dims(bias)])


RULES.register(aten.einsum.default)(Contraction(einsum_terms))
RULES.register(aten.bilinear.default)(Biased(bilinear_terms, slice(0, 3)))
RULES.register(aten.tensordot.default)(Contraction(tensordot_terms))
RULES.register(aten.outer.default, aten.ger.default)(Contraction(fixed_terms("i,j->ij")))
RULES.register(aten.mv.default)(Contraction(fixed_terms("ij,j->i")))
RULES.register(aten.dot.default, aten.vdot.default)(Contraction(fixed_terms("i,i->")))
RULES.register(aten.addr.default)(Added(fixed_terms("i,j->ij"), slice(1, 3)))
RULES.register(aten.addmv.default)(Added(fixed_terms("ij,j->i"), slice(1, 3)))
RULES.register(aten.addbmm.default)(Added(fixed_terms("bij,bjk->ik"), slice(1, 3)))


class _Letters(nn.Module):
    """An example: three equations in sequence."""

    def __init__(self, *equations: str) -> None:
        super().__init__()
        self.equations, self.w = equations, nn.Parameter(torch.randn(8, 6))
        self.k, self.v, self.out = nn.Linear(6, 8), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        first, second, third = self.equations
        q = torch.einsum(first, x, self.w)
        scores = torch.tanh(torch.einsum(second, q, self.k(x)))
        return self.out(torch.einsum(third, scores, self.v(x)))


class _Heads(nn.Module):
    """An example: weights with a dimension of heads, and three operands."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Parameter(torch.randn(6, 4, 8)), nn.Parameter(torch.randn(6, 4, 8))
        self.scale, self.out = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4, 8, 3))

    def forward(self, x: Tensor) -> Any:
        q, k = torch.einsum("bsi,ihd->bhsd", x, self.q), torch.einsum("bsi,ihd->bhsd", x, self.k)
        scores = torch.einsum("bhsd,bhtd,h->bhst", q, k, self.scale)
        return torch.einsum("bhst,bhtd,hdo->bso", torch.tanh(scores), k, self.out)


class _Stretched(nn.Module):
    """An example: a letter of size 1 in one operand, where the other one is zero at masked indices, and where it is
    not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)
        self.w, self.v = nn.Parameter(torch.randn(3, 1)), nn.Parameter(torch.randn(8, 1))

    def forward(self, x: Tensor) -> Any:
        shifted = torch.tensordot(self.b(x).sigmoid(), self.v.T[:, :1], ([1], [1]))
        return torch.einsum("bi,oi->bo", self.a(x), self.w) + shifted


class _Others(nn.Module):
    """An example: contractions that are separate operators."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.pair, self.c = nn.Linear(6, 8), nn.Linear(6, 4), nn.Bilinear(8, 4, 5), nn.Linear(5, 3)
        self.u, self.v, self.w = (nn.Parameter(torch.randn(n)) for n in (8, 4, 8))

    def forward(self, x: Tensor) -> Any:
        a, b = self.a(x), self.b(x)
        low = torch.outer(self.u, self.v)
        scale = torch.dot(self.u, self.w) + torch.tensordot(low, low, 2)
        shift = torch.addmv(self.v, low.T, self.w) + torch.addr(low, self.w, self.v).sum(0)
        vector = torch.mv(a, self.u)[:, None] + torch.addbmm(self.v, a[None], low[None])
        return self.c(self.pair(a, b * scale + shift)) + vector.sum(1, keepdim=True)
