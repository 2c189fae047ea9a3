"""Fused attention: queries, keys and values share heads; the head dim is contracted."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphprune.axes.algebra import Axis, factor
from graphprune.axes.rule import Cut, Dims, Example, Flow, OpCall, Rule
from graphprune.axes.rule_helpers import argument, broadcast, broadcast_axis
from graphprune.passes.operators import rule

aten = torch.ops.aten


@rule(aten.scaled_dot_product_attention.default)
class Attention(Rule):
    """``q (... h s d), k (... h t d), v (... h t e) -> (... h s e)``, k and v with fewer heads for grouped queries."""

    summands = (2,)  # the output of a masked query is the mean of the values, not zero

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        (*lead_q, s, d), (*lead_k, t, dk), (*lead_v, tv, e) = (flow.dims(value) for value in node.args[:3])
        heads: list[Axis] = []  # query heads, if there are more than key/value heads
        if argument(node, 7, "enable_gqa", False):
            heads.append(lead_q[-1])
            lead_q[-1] = factor(lead_q[-1], lead_k[-1].size)[0]
        lead = list(broadcast(flow, [tuple(lead_q), tuple(lead_k), tuple(lead_v)]))
        flow.cache_kv(*node.args[1:3])
        flow.unify(d, dk)
        flow.unify(t, tv)
        flow.contract(d, *node.args[:2])
        flow.share_selection([d, e], [s, t])
        flow.mark_inexact(t, "attention is normalized along it")
        for axis in (s, t) if argument(node, 5, "is_causal", False) else ():
            flow.pin(axis, "the order of its indices matters here")
        lead[-1:] = heads or lead[-1:]
        for axis in (*lead, s, t) if argument(node, 4, "dropout_p", 0.0) else ():
            flow.pin(axis, "its values are dropped at random")
        flow.count_macs(*lead, s, t, d)
        flow.count_macs(*lead, s, t, e)
        if (mask := argument(node, 3, "attn_mask")) is not None:
            _broadcast_mask(flow, [*lead, s, t], flow.dims(mask))
        return *lead, s, e

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        kwargs = dict(node.kwargs)
        if argument(node, 6, "scale") is None:
            # The default depends on the head dim; a cut must not change it.
            kwargs["scale"] = cut.dims(node.args[0])[-1].size ** -0.5
        return OpCall(node.target, node.args[:6], kwargs)

    def examples(self) -> Iterator[Example]:
        yield Example(SelfAttention(heads=4, groups=4), (torch.randn(2, 5, 6),))
        yield Example(SelfAttention(heads=4, groups=2), (torch.randn(2, 5, 6),))


def _broadcast_mask(flow: Flow, scores: list[Any], mask: Dims) -> None:
    """Broadcast a mask with the scores."""
    for score, axis in zip(reversed(scores), reversed(mask), strict=False):
        broadcast_axis(flow, [score, axis])


class SelfAttention(nn.Module):
    """An example: attention with `groups` key/value heads for `heads` query heads."""

    def __init__(self, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups = heads, groups
        self.q, self.k = nn.Linear(6, heads * 8), nn.Linear(6, groups * 8)
        self.v, self.out = nn.Linear(6, groups * 4), nn.Linear(heads * 4, 6)

    def forward(self, x: Tensor) -> Any:
        q, k, v = (p(x).unflatten(2, (n, -1)).transpose(1, 2) for p, n in self._projections())
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.groups < self.heads)
        return self.out(y.transpose(1, 2).flatten(2))

    def _projections(self) -> list[tuple[nn.Module, int]]:
        return [(self.q, self.heads), (self.k, self.groups), (self.v, self.groups)]
