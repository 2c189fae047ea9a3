"""Weight normalization: weights computed from a direction and a magnitude."""

from collections.abc import Iterator
from math import nan

import torch
from torch import fx, nn
from torch.nn.utils.parametrizations import weight_norm

from graphprune.axes.algebra import Misaligned
from graphprune.axes.rule import Dims, Example, Flow, MaskedArguments, Rule
from graphprune.axes.rule_helpers import argument, broadcast_axis
from graphprune.execution.equivalence import direction_of
from graphprune.passes.operators import rule


@rule(torch.ops.aten._weight_norm.default)
class WeightNorm(Rule):
    """``v * g / |v|``, with the norm over all dimensions of v but one, the only one that g has."""

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        vectors, lengths = flow.dims(node.args[0]), flow.dims(node.args[1])
        kept_dim = argument(node, 2, "dim", 0)  # -1: a single norm over all dimensions
        for i, axis in enumerate(vectors):
            if i != kept_dim:
                flow.contract(axis, node.args[0])
                flow.share_selection(vectors, [axis])
        if any(axis.size != 1 for i, axis in enumerate(lengths) if i != kept_dim):
            raise Misaligned("magnitudes along dimensions over which the norm is taken")
        for i, axis in enumerate(lengths):
            broadcast_axis(flow, [vectors[i], axis])
        return vectors

    def masked_value(self, node: fx.Node, inputs: MaskedArguments) -> float | None:
        """Zero where the magnitude is; NaN if the direction is masked, too, since a zero vector has none."""
        if node.args[1] in inputs.carriers and direction_of(node) is None:
            return nan
        return 0.0 if any(inputs.number_of(value) == 0 for value in node.args[:2]) else None

    def examples(self) -> Iterator[Example]:
        layers = (
            weight_norm(nn.Conv1d(3, 8, 1)),
            nn.ReLU(),
            weight_norm(nn.ConvTranspose1d(8, 6, 3)),
            nn.Conv1d(6, 2, 1),
        )
        yield Example(nn.Sequential(*layers), (torch.randn(2, 3, 5),))
        yield Example(
            nn.Sequential(nn.Linear(6, 8), weight_norm(nn.Linear(8, 6), dim=1), nn.Linear(6, 2)), (torch.randn(2, 6),)
        )
        yield Example(
            nn.Sequential(nn.Linear(6, 8), weight_norm(nn.Linear(8, 6), dim=-1), nn.Linear(6, 2)), (torch.randn(2, 6),)
        )
