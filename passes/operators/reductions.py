"""Reductions: an axis remains exact under sums and norms, but not under other reductions."""

from collections.abc import Callable, Iterator, Sequence
from math import nan, prod

import torch
from torch import fx, nn

from graphprune.axes.algebra import Axis
from graphprune.axes.rule import Cut, Dims, Example, Flow, MaskedArguments, Rule, Zeros
from graphprune.axes.rule_helpers import (
    argument,
    between_layers,
    broadcast,
    canonical_dim,
    canonical_dims,
    reduced_dims,
)
from graphprune.passes.operators import RULES, rule

aten = torch.ops.aten


ELEMENTWISE_IF_EMPTY = (aten.any.dims, aten.all.dims)  # for an empty list of dimensions


class Reduce(Rule):
    """Reduction of some dimensions, which are removed or become size 1."""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        reduced = self.reduced(node, len(dims))
        for i in reduced:
            self.reduce(flow, node, dims[i])
        return reduced_dims(dims, reduced, argument(node, 2, "keepdim", False))

    def reduced(self, node: fx.Node, rank: int) -> list[int]:
        """The reduced dimensions: all of them without an argument."""
        dims = argument(node, 1, "dim")
        return [] if dims == [] and node.target in ELEMENTWISE_IF_EMPTY else canonical_dims(dims, rank)

    def reduce(self, flow: Flow, node: fx.Node, axis: Axis) -> None:
        """Report a reduced axis to the analysis."""
        flow.mark_inexact(axis, "it is reduced here, not by a sum")

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y.mean(1) + y.amax(1) * y.mean(2, keepdim=True).amin(1))


@rule(aten.mean.dim, aten.mean.default)
class Mean(Reduce):
    """A mean: after a cut it has fewer terms, but the same sum."""

    degree = 1.0

    def reduce(self, flow: Flow, node: fx.Node, axis: Axis) -> None:
        flow.average(axis, node.args[0])

    def gain(self, cut: Cut, node: fx.Node) -> float:
        """Ratio of the old number of terms to the new one."""
        dims = cut.dims(node.args[0])
        return prod(cut.mean_gain(dims[i]) for i in canonical_dims(argument(node, 1, "dim"), len(dims)))

    def examples(self) -> Iterator[Example]:
        yield Example(_RootMeanSquare(), (torch.randn(3, 6),))


@rule(aten.sum.dim_IntList, aten.sum.default)
class Summation(Reduce):
    """A sum: exact if the removed terms are zero."""

    degree = 1.0

    def reduce(self, flow: Flow, node: fx.Node, axis: Axis) -> None:
        flow.contract(axis, node.args[0])

    def examples(self) -> Iterator[Example]:
        yield Example(_Summed(), (torch.randn(3, 6),))


class Any(Reduce):
    """Logical any, or a count of nonzero entries: zeros do not change it."""

    def reduce(self, flow: Flow, node: fx.Node, axis: Axis) -> None:
        flow.contract(axis, node.args[0])

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y * (y > 0).any(2, keepdim=True) * (y == 0).all(2, keepdim=True).logical_not())


class All(Reduce):
    """Reduction of all dimensions, for overloads without a dimension argument."""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        for axis in flow.dims(node.args[0]):
            self.reduce(flow, node, axis)
        return ()

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y / (1 + y.abs().max()))


RULES.register(
    aten.amax.default, aten.amin.default, aten.all.dim, aten.all.dims, aten.prod.dim_int,
)(Reduce())  # fmt: skip
RULES.register(aten.any.dim, aten.any.dims, aten.count_nonzero.dim_IntList)(Any())
RULES.register(
    aten.max.default, aten.min.default, aten.prod.default, aten.all.default, aten.any.default, aten.median.default,
)(All())  # fmt: skip


@rule(aten.logsumexp.default)
class LogSumExp(Reduce):
    """Logarithm of the denominator of softmax: n zeros give log(n)."""

    zeros = Zeros.LOST

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y - y.logsumexp([2], keepdim=True) * y.logsumexp(1, keepdim=True))
        yield between_layers(lambda y: y.logsumexp(1).sum(-1)[:, None, None] * y)


class VectorNorm(Reduce):
    """Vector and matrix norms, ``(x, order, dim, keepdim)``: zeros do not change a vector norm of order >= 0."""

    degree = 1.0

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims, order = flow.dims(node.args[0]), argument(node, 1, "ord")
        reduced = canonical_dims(argument(node, 2, "dim"), len(dims))
        matrix = node.target is aten.linalg_norm.default and order is not None and len(reduced) > 1
        for i in reduced:
            if matrix or (order is not None and (isinstance(order, str) or order < 0)):
                flow.mark_inexact(dims[i], "its norm is taken here")
            else:
                flow.contract(dims[i], node.args[0])
        return reduced_dims(dims, reduced, argument(node, 3, "keepdim", False))

    def scale(self, node: fx.Node, factor: Callable[[object], float]) -> float | None:
        """The factor of the values; the norm of order 0 is a count."""
        return None if argument(node, 1, "ord") == 0 else super().scale(node, factor)

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: torch.nn.functional.normalize(y, dim=2) * y.norm(dim=1, keepdim=True))
        yield between_layers(lambda y: y * y.norm(p=float("-inf"), dim=2, keepdim=True))


RULES.register(
    aten.linalg_vector_norm.default, aten.linalg_norm.default, aten.norm.Scalar, aten.norm.ScalarOpt_dim,
    aten.norm.ScalarOpt_dim_dtype,
)(VectorNorm())  # fmt: skip


FULL_VARIANCES = (aten.var.default, aten.std.default)


class Variance(Reduce):
    """Variance or standard deviation along some dimensions."""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = flow.dims(node.args[0])
        reduced = canonical_dims(None if node.target in FULL_VARIANCES else argument(node, 1, "dim"), len(dims))
        for i in reduced:
            flow.mark_inexact(dims[i], "its variance is taken here")
            flow.require_width(dims[i], self.correction(node) + 1)  # the variance of fewer is NaN
        return reduced_dims(dims, reduced, argument(node, 3, "keepdim", False))

    def correction(self, node: fx.Node) -> int:
        """Difference of the number of terms and the divisor, rounded down."""
        if "correction" in str(node.target):
            correction = node.kwargs.get("correction")
            return 1 if correction is None else int(correction) if isinstance(correction, int | float) else 1
        return int(bool(argument(node, 1 if node.target in FULL_VARIANCES else 2, "unbiased", True)))

    def examples(self) -> Iterator[Example]:
        yield between_layers(
            lambda y: (
                y / (torch.var(y, 2, correction=0, keepdim=True) + 1).sqrt()
                + torch.std(y, 1, correction=1, keepdim=True)
            )
        )
        yield between_layers(lambda y: y * y.std() + y.var(1, True, True))


class VarianceAndMean(Variance):
    """Variance or standard deviation, and the mean, as two outputs."""

    def axes(self, flow: Flow, node: fx.Node) -> list[Dims]:  # type: ignore[override]
        return [super().axes(flow, node)] * 2

    def examples(self) -> Iterator[Example]:
        yield between_layers(
            lambda y: y * torch.var_mean(y, 2, keepdim=True)[1] + torch.std_mean(y, (1, 2), keepdim=True)[0]
        )


RULES.register(
    aten.var.correction, aten.std.correction, aten.var.dim, aten.std.dim, aten.var.default, aten.std.default
)(Variance())
RULES.register(aten.var_mean.correction, aten.std_mean.correction, aten.var_mean.dim, aten.std_mean.dim)(
    VarianceAndMean()
)


@rule(aten.cosine_similarity.default)
class Cosine(Rule):
    """Inner product of two values along one dimension, divided by both norms."""

    zeros = Zeros.PRODUCT

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims = list(broadcast(flow, [flow.dims(value) for value in node.args[:2]]))
        axis = dims.pop(canonical_dim(argument(node, 2, "dim", 1), len(dims)))
        for value in node.args[:2]:
            flow.contract(axis, value)
        return tuple(dims)

    def factors(self, node: fx.Node, inputs: MaskedArguments) -> Sequence[object]:
        """The operands that have the axis in a dimension other than the compared one."""
        rank = node.meta["val"].dim() + 1
        compared = rank - canonical_dim(argument(node, 2, "dim", 1), rank)  # counted from the end
        values = [value for value in node.args[:2] if isinstance(value, fx.Node)]
        ranks = {value: value.meta["val"].dim() for value in values}
        return [v for v in values if any(ranks[v] - i != compared for i in inputs.places.get(v, ()))]

    def masked_value(self, node: fx.Node, inputs: MaskedArguments) -> float | None:
        return super().masked_value(node, inputs) if argument(node, 3, "eps", 1e-8) else nan

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: y * torch.cosine_similarity(y, y.sin(), 2)[:, :, None])


class Distance(Rule):
    """``a (... m k), b (... n k) -> (... m n)``"""

    zeros = Zeros.LOST

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        (*lead_a, m, k), (*lead_b, n, other) = (flow.dims(value) for value in node.args[:2])
        flow.unify(k, other)
        for value in node.args[:2]:
            flow.contract(k, value)
        flow.share_selection([k], [m, n])
        return *broadcast(flow, [tuple(lead_a), tuple(lead_b)]), m, n

    def examples(self) -> Iterator[Example]:
        yield between_layers(lambda y: torch.cdist(y, y.sin()) @ y)


RULES.register(aten.cdist.default, aten._cdist_forward.default)(Distance())


class _Summed(nn.Module):
    """An example: a product of two branches, summed over its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = self.a(x) * torch.relu(self.b(x))
        return product.sum(dim=-1)


class _RootMeanSquare(nn.Module):
    """An example: an RMS norm written out with a weight that absorbs its factor, and a mean without such a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.weight = nn.Linear(6, 8), nn.Linear(8, 3), nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        normed = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 0.1)
        return self.b(normed * self.weight) + torch.tanh(y.mean(-1, keepdim=True))  # type: ignore[no-any-return]
