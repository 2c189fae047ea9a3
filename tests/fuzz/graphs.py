"""The strategy for random graphs, and the module and inputs that a graph stands for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.fuzz import arrangements, indexing, networks, numbers
from tests.fuzz.layers import Indexed
from tests.fuzz.world import OPERATIONS, SIZES, Dice, Graph, Interpreter, Maker, Step, floating

assert arrangements and indexing and networks and numbers  # importing them registers their operations

FORMS = ("flat", "sequence", "image", "tokens", "two", "named", "mapping", "still", "masked")
#: What makes freedoms, or meets them, is drawn more often than what is opaque.
OFTEN = (
    "linear", "linear", "linear", "linear", "again", "project", "convolution", "depthwise", "norm", "channel_norm",
    "feed_forward", "attention", "add", "add", "gate", "gate", "unary", "unary", "binary", "scale", "reshape",
    "unflatten", "flatten", "permute", "permute", "concatenate", "halves", "reduce", "repeat", "pairs", "product",
)  # fmt: skip
OUTPUTS = 4


def steps(*names: str) -> st.SearchStrategy[Step]:
    """A step of one of these operations, of any if none is named."""
    known = names or (*OFTEN, *OFTEN, *OPERATIONS)
    newest = st.sampled_from((0, 0, 0, 1, 1, 2, 3))
    return st.builds(Step, st.sampled_from(known), newest, newest, st.integers(0, 10**6))


def graphs(*names: str, least: int = 1, most: int = 14) -> st.SearchStrategy[Graph]:
    """Random graphs of these operations, of all if none is named."""
    sizes = st.tuples(st.sampled_from((4, 2, 6, 8, 3)), st.sampled_from(SIZES[:4]), st.sampled_from(SIZES[:4]))
    many = st.lists(steps(*names), min_size=least, max_size=most).map(tuple)
    return st.builds(Graph, st.sampled_from(FORMS), sizes, many, st.integers(0, 10**4), st.integers(0, 10**6))


@dataclass(frozen=True)
class Built:
    """A module with a call of it; built again from the same graph, it is the same module."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def build(graph: Graph) -> Built:
    """The module of a graph; its first steps make features of the inputs, which themselves cannot be cut."""
    args, kwargs = inputs(graph)
    leaves = torch.utils._pytree.tree_leaves((args, kwargs))
    maker = Maker(graph, values=list(leaves))
    for i, leaf in enumerate(leaves):
        maker.add(OPERATIONS[_first(leaf)].make(Dice(graph.seed, maker), leaf), (i,))
    for step in graph.steps:
        maker.step(step)
    outputs, ending = [], graph.ending
    unread = [i for i in range(len(leaves), len(maker.values)) if i not in maker.used]
    for i in unread[-OUTPUTS:] or [len(maker.values) - 1]:
        ending, how = divmod(ending, len(READERS))
        maker.add(READERS[how](Dice(graph.seed, maker), maker.values[i]), (i,), read=True)
        outputs.append(len(maker.values) - 1)
    return Built(Interpreter(maker, outputs, NESTS[graph.seed % len(NESTS)]).eval(), args, kwargs)


def _first(leaf: Tensor) -> str:
    """The operation that makes features of an input."""
    if leaf.dtype == torch.bool:
        return "kept"
    return "embedding" if not floating(leaf) else "convolution" if leaf.dim() == 4 else "linear"


def inputs(graph: Graph) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs of the graph's form."""
    generator = torch.Generator().manual_seed(graph.seed)
    batch, second, last = graph.sizes
    shapes = {"flat": (batch, last), "image": (batch, last, 4, second if second < 8 else 4)}

    def real(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = real(shapes.get(graph.form, (batch, second, last)))
    if graph.form == "tokens":
        return (torch.randint(0, 4, (batch, second), generator=generator),), {}
    if graph.form == "two":
        return (x, real((batch, second, graph.sizes[1]))), {}
    if graph.form == "masked":
        return (x, torch.rand((batch, second), generator=generator) < 0.7), {}
    if graph.form == "named":
        return (x,), {"other": real((batch, last))}
    if graph.form == "mapping":
        return ({"x": x, "y": real((batch, last))},), {}
    return (x,), {}


def _read(dice: Dice, x: Tensor) -> Callable[[Tensor], Tensor]:
    """A linear map of the last dimension."""
    return dice.keep(nn.Linear(x.shape[-1], 3)) if floating(x) else _raw(dice, x)


def _turned(dice: Dice, x: Tensor) -> Callable[[Tensor], Tensor]:
    """A linear map of some dimension, which comes last."""
    if not floating(x):
        return _raw(dice, x)
    dim = dice.dim(x, min(1, x.dim() - 1))
    layer = dice.keep(nn.Linear(x.shape[dim], 3))
    return lambda x: layer(x.transpose(dim, -1))


def _flat(dice: Dice, x: Tensor) -> Callable[[Tensor], Tensor]:
    """A linear map of all dimensions but the first."""
    if x.dim() < 2 or not floating(x):
        return _read(dice, x)
    layer = dice.keep(nn.Linear(x[0].numel(), 3))
    return lambda x: layer(x.flatten(1))


def _mapped(dice: Dice, x: Tensor) -> Callable[[Tensor], Tensor]:
    """A linear map of the last two dimensions, one after the other."""
    if x.dim() < 3 or not floating(x):
        return _read(dice, x)
    one, two = dice.keep(nn.Linear(x.shape[-1], 2)), dice.keep(nn.Linear(x.shape[-2], 3))
    return lambda x: two(one(x).mT)


def _banned(dice: Dice, x: Tensor) -> Callable[[Tensor], Tensor]:
    """A linear map of the last dimension, with a mark in place of some numbers."""
    if not floating(x):
        return _raw(dice, x)
    layer, mark = dice.keep(nn.Linear(x.shape[-1], 3)), dice.pick((-1e9, torch.finfo(x.dtype).min, float("-inf")))
    ban = dice.keep(Indexed(torch.tensor([False, True, False]), lambda y, mask: y.masked_fill(mask, mark)))
    return lambda x: ban(layer(x))


def _sum(dice: Dice, x: Tensor) -> Callable[[Tensor], Tensor]:
    """A sum."""
    return lambda x: x.sum(-1)


def _raw(dice: Dice, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The value as it is."""
    return lambda x: x.clone()


READERS = (_read, _turned, _flat, _mapped, _read, _turned, _read, _sum, _raw, _banned)
NESTS: tuple[Callable[[list[Tensor]], Any], ...] = (
    lambda values: values[0] if len(values) == 1 else tuple(values),
    lambda values: {"first": values[0], "rest": tuple(values[1:])},
    lambda values: (values, {"again": values[0], "none": None}),
)
