"""What operator rules share: broadcasting, dimension numbers, and linear consumers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphprune.axes.algebra import UNIT, Axis, prime
from graphprune.axes.rule import Consumer, Dims, Example, Flow

DYNAMIC = "its size is dynamic"  # the reason that pins an axis of symbolic size
UNKNOWN = 97  # stands for a size that depends on data; no model has an axis of this size by chance


def tensors(node: fx.Node) -> Iterator[fx.Node]:
    """The tensor inputs of a node, in order."""
    return (value for value in node.all_input_nodes if isinstance(value.meta.get("val"), Tensor))


def hint(size: Any) -> int:
    """A size, or a literal of a call, as it was in the example; asking a symbol itself would make it static."""
    if isinstance(size, fx.Node):
        size = size.meta["val"]
    if isinstance(size, int):
        return size
    if size.node.hint is not None:
        return int(size.node.hint)
    sizes = {s: size.node.shape_env.backed_var_to_val.get(s, UNKNOWN) for s in size.node.expr.free_symbols}
    return int(size.node.expr.xreplace(sizes))


def sized(size: Any, sizes: Mapping[Any, int]) -> Any:
    """A size as a number, symbols being those of `sizes` or of the example; what is no size is left as it is."""
    if isinstance(size, int | float) or not hasattr(size, "node"):
        return size
    known = size.node.expr.xreplace(dict(sizes))
    return int(known) if getattr(known, "is_number", True) else hint(size)


def token_symbols(graph: fx.Graph) -> list[Any]:
    """The symbols of the batch and the length of token ids, those of them that may vary."""
    shapes = (n.meta["val"].shape for n in graph.nodes if n.op == "placeholder" and n.name == "input_ids")
    return [size.node.expr for size in next(shapes, ()) if not isinstance(size, int)]


def broadcast(flow: Flow, operands: Sequence[Dims]) -> Dims:
    """The dimensions that come of broadcasting, aligned at the end; equal ones become one axis."""
    columns = list(zip_longest(*(reversed(dims) for dims in operands), fillvalue=UNIT))
    return tuple(meet(flow, column) for column in reversed(columns))


def meet(flow: Flow, axes: Sequence[Axis]) -> Axis:
    """The one axis that these are; those of size 1 are stretched."""
    wide = [axis for axis in axes if axis.size != 1]
    for other in wide[1:]:
        flow.unify(wide[0], other)
    return wide[0] if wide else UNIT


def matched(flow: Flow, a: Axis, b: Axis) -> None:
    """Two dimensions of which one may be longer, and is used only as far as the other reaches."""
    if a.size == b.size:
        flow.unify(a, b)
        return
    for axis in (a, b):
        flow.pin(axis, "only its first indices are used")


def indexed(flow: Flow, dims: Dims, indices: Sequence[Any]) -> Dims:
    """The axes of ``x[indices]`` for `dims` of x.

    What tensors index is replaced by their broadcast dimensions, in place if they are neighbours, else in front.
    """
    rest, found, places = [], [], []
    queue = list(dims)
    for index in indices:
        if index is None:
            rest.append(queue.pop(0))
            continue
        places.append(len(rest))
        mask = index.meta["val"].dtype == torch.bool
        for own in flow.dims(index) if mask else (queue[0],):
            flow.unify(queue[0], own)
            flow.look_up(queue.pop(0), index)
        found.append((prime(UNKNOWN, DYNAMIC),) if mask else flow.dims(index))
    front = places[0] if len(set(places)) == 1 else 0
    rest += queue
    return *rest[:front], *broadcast(flow, found), *rest[front:]


def slid(flow: Flow, node: fx.Node, channels: Callable[[Flow, fx.Node, Axis, Dims], Axis]) -> Dims:
    """The axes of a convolution; `channels` makes those of its outputs, of those of its input and of its weight."""
    x, weight = flow.dims(node.args[0]), flow.dims(node.args[1])
    spatial = len(weight) - 2
    out = channels(flow, node, x[-spatial - 1], weight)
    for axis in weight[2:]:
        flow.pin(axis, "it is a kernel size")
    for axis in x[-spatial:]:
        flow.pin(axis, "a kernel slides along it")
    if (added := argument(node, 2, "bias")) is not None:
        flow.unify(out, flow.dims(added)[0])
    return *x[: -spatial - 1], out, *flow.fresh(node, "it is a spatial dimension")[-spatial:]


def position(dim: int, rank: int) -> int:
    """A dimension number counted from the front."""
    return dim + rank if dim < 0 else dim


def positions(dims: Any, rank: int) -> list[int]:
    """Dimension numbers counted from the front; all of them for None or an empty list."""
    if dims is None or dims == []:
        return list(range(rank))
    return [position(dim, rank) for dim in ([dims] if isinstance(dims, int) else dims)]


def literal(node: fx.Node, index: int) -> Any:
    """An argument of a call that a rule takes as it stands."""
    return node.args[index]


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by position or by name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def pinned(flow: Flow, val: Tensor, why: str) -> Dims:
    """New axes in the shape of a value, for an operator with several outputs; all pinned."""
    dims = tuple(prime(hint(size), *([] if isinstance(size, int) else [DYNAMIC])) for size in val.shape)
    for axis in dims:
        flow.pin(axis, why)
    return dims


def bias(flow: Flow, node: fx.Node, at: int) -> tuple[str | None, int | None]:
    """The parameter that is the bias at argument `at`, and that argument if a bias can be put there."""
    given = argument(node, at, "bias")
    found = flow.origin(given)
    if given is None or (found and len(found[1]) == 1):
        return (found[0] if found else None), at
    return None, None


def consume(
    flow: Flow, node: fx.Node, x: Any, weight: Any, dim: int, bias_at: int | None = None, last: bool = True
) -> None:
    """Report a consumer if the weight is a parameter of two dimensions, possibly seen transposed.

    `last`: the outputs are the last dimension, and those before it are as they were.
    """
    found = flow.origin(weight)
    if found is None or len(found[1]) != 2:
        return
    name, order = found
    contracted = order[dim]
    added, place = (None, None) if bias_at is None else bias(flow, node, bias_at)

    def matrix(w: Tensor) -> Tensor:
        return w if contracted == 1 else w.T

    flow.consume(
        Consumer(
            node=node.name, x=x.name, weight=name, dim=contracted, axis=flow.dims(x)[-1],
            features=rows,
            matrix=matrix,
            restore=matrix,
            outputs=rows if last else None,
            bias=added,
            bias_at=place,
        )
    )  # fmt: skip


def rows(value: Tensor) -> Tensor:
    """A matrix whose columns are the last dimension."""
    return value.reshape(-1, value.shape[-1])


def between(f: Callable[[Tensor], Tensor], features: int = 8) -> Example:
    """An example with two hidden layers: `f` makes `features` of the eight of the second."""
    return Example(_Between(f, features), (torch.randn(2, 5, 6),))


class _Between(nn.Module):
    """The first hidden layer can always be cut, the second where `f` allows it."""

    def __init__(self, f: Callable[[Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.f, self.a, self.b, self.c = f, nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Any:
        return self.c(self.f(self.b(torch.relu(self.a(x)))))
