"""Embeddings: rows of a weight selected by index."""

from collections.abc import Iterator

import torch
from torch import fx, nn

from graphprune.axes.rule import Dims, Example, Flow, Rule
from graphprune.passes.operators import rule

aten = torch.ops.aten


@rule(aten.embedding.default)
class Embedding(Rule):
    """``weight (v d), indices (...) -> (... d)``"""

    selects = (1,)
    summands = (0,)  # a masked index is 0, which selects the first row

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        rows, columns = flow.dims(node.args[0])
        flow.look_up(rows, node.args[1])
        flow.produce(node.args[0], 1)
        return *flow.dims(node.args[1]), columns

    def examples(self) -> Iterator[Example]:
        yield Example(nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 4)), (torch.randint(0, 9, (2, 5)),))
