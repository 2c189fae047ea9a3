"""Tables looked up by index: embeddings and advanced indexing."""

from collections.abc import Iterator

import torch
from torch import fx, nn

from graphprune.axes import Misaligned
from graphprune.contracts import Dims, Example, Flow, Rule
from graphprune.dimensions import between, broadcast, literal
from graphprune.passes.operators import rule

aten = torch.ops.aten


@rule(aten.embedding.default)
class Embedding(Rule):
    """``weight (v d), indices (...) -> (... d)``"""

    summands = (0,)  # where an index is masked, the first row is looked up

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        rows, columns = flow.dims(node.args[0])
        flow.pin(rows, "the input indexes it")
        flow.produce(node.args[0], 1)
        return *flow.dims(node.args[1]), columns

    def examples(self) -> Iterator[Example]:
        yield Example(nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 4)), (torch.randint(0, 9, (2, 5)),))


@rule(aten.index.Tensor)
class Index(Rule):
    """Some neighbouring dimensions are indexed by tensors, the others pass."""

    summands = (0,)

    def axes(self, flow: Flow, node: fx.Node) -> Dims:
        dims, indices = flow.dims(node.args[0]), list(literal(node, 1))
        used = [i for i, index in enumerate(indices) if index is not None]
        if used != list(range(used[0], used[-1] + 1)) or any(_is_mask(indices[i]) for i in used):
            raise Misaligned("dimensions apart from each other, or a mask, index it")
        for i in used:
            flow.pin(dims[i], "a tensor indexes it")
        picked = broadcast(flow, [flow.dims(indices[i]) for i in used])
        return *dims[: used[0]], *picked, *dims[used[-1] + 1 :]

    def examples(self) -> Iterator[Example]:
        yield between(lambda y: y[:, torch.tensor([3, 1, 1])])


def _is_mask(index: object) -> bool:
    return isinstance(index, fx.Node) and index.meta["val"].dtype == torch.bool
