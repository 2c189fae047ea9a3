"""Shared by operator rules: broadcasting, dimension numbers, and the report of a linear operator."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphprune.axes.algebra import UNIT, Axis, prime
from graphprune.axes.rule import Consumer, Dims, Example, Flow, Member

DYNAMIC = "its size is dynamic"  # the reason that pins an axis of symbolic size
UNKNOWN = 97  # placeholder for a data-dependent size; a prime that no model has as a width


def tensor_inputs(node: fx.Node) -> Iterator[fx.Node]:
    """The tensor inputs of a node, in order."""
    return (value for value in node.all_input_nodes if isinstance(value.meta.get("val"), Tensor))


def size_hint(size: Any) -> int:
    """A size, or a literal of a call, in the example inputs, read without making a symbol static."""
    if isinstance(size, fx.Node):
        size = size.meta["val"]
    if isinstance(size, int):
        return size
    if size.node.hint is not None:
        return int(size.node.hint)
    sizes = {s: size.node.shape_env.backed_var_to_val.get(s, UNKNOWN) for s in size.node.expr.free_symbols}
    return int(size.node.expr.xreplace(sizes))


def substitute_sizes(size: Any, sizes: Mapping[Any, int]) -> Any:
    """A size as a number, symbols taken from `sizes` or from the example; anything else is returned unchanged."""
    if isinstance(size, int | float) or not hasattr(size, "node"):
        return size
    known = size.node.expr.xreplace(dict(sizes))
    return int(known) if getattr(known, "is_number", True) else size_hint(size)


def token_symbols(graph: fx.Graph, name: str = "input_ids") -> list[Any]:
    """The symbolic sizes, batch and sequence length, of the token ids."""
    shapes = (n.meta["val"].shape for n in graph.nodes if n.op == "placeholder" and n.name == name)
    return [size.node.expr for size in next(shapes, ()) if not isinstance(size, int)]


def broadcast(flow: Flow, operands: Sequence[Dims]) -> Dims:
    """The dimensions of the broadcast result; operands are aligned at the last dimension, and matching axes unified."""
    columns = list(zip_longest(*(reversed(dims) for dims in operands), fillvalue=UNIT))
    return tuple(broadcast_axis(flow, column) for column in reversed(columns))


def broadcast_axis(flow: Flow, axes: Sequence[Axis]) -> Axis:
    """The common axis of dimensions that broadcast together; those of size 1 are stretched."""
    wide = [axis for axis in axes if axis.size != 1]
    for other in wide[1:]:
        flow.unify(wide[0], other)
    return wide[0] if wide else UNIT


def unify_prefix(flow: Flow, a: Axis, b: Axis) -> None:
    """Unify two dimensions of equal size; pin both where only the first indices of the longer one are used."""
    if a.size == b.size:
        flow.unify(a, b)
        return
    for axis in (a, b):
        flow.pin(axis, "only its first indices are used")


def indexed_dims(flow: Flow, dims: Dims, indices: Sequence[Any]) -> tuple[Dims, Dims, Dims]:
    """The axes of ``x[indices]`` for `dims` of x: those before the indices, those of the indices, those after.

    Dimensions indexed by tensors are replaced by the broadcast dimensions of those tensors: in place if they are
    adjacent, in front otherwise.
    """
    rest, index_dims, places = [], [], []
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
        index_dims.append((prime(UNKNOWN, DYNAMIC),) if mask else flow.dims(index))
    front = places[0] if len(set(places)) == 1 else 0
    rest += queue
    return tuple(rest[:front]), broadcast(flow, index_dims), tuple(rest[front:])


def convolution_dims(flow: Flow, node: fx.Node, channels: Callable[[Flow, fx.Node, Axis, Dims], Axis]) -> Dims:
    """The axes of a convolution; `channels` computes the output channel axis from those of the input and the weight."""
    x, weight = flow.dims(node.args[0]), flow.dims(node.args[1])
    spatial = len(weight) - 2
    out = channels(flow, node, x[-spatial - 1], weight)
    for axis in weight[2:]:
        flow.pin(axis, "it is a kernel size")
    for axis in x[-spatial:]:
        flow.pin(axis, "a kernel slides along it")
    if (bias := argument(node, 2, "bias")) is not None:
        flow.unify(out, flow.dims(bias)[0])
    return *x[: -spatial - 1], out, *flow.fresh(node, "it is a spatial dimension")[-spatial:]


def canonical_dim(dim: int, rank: int) -> int:
    """A dimension number counted from the front."""
    return dim + rank if dim < 0 else dim


def canonical_dims(dims: Any, rank: int) -> list[int]:
    """Dimension numbers counted from the front; all of them for None or an empty list."""
    if dims is None or dims == []:
        return list(range(rank))
    return [canonical_dim(dim, rank) for dim in ([dims] if isinstance(dims, int) else dims)]


def reduced_dims(dims: Dims, reduced: Sequence[int], keepdim: bool) -> Dims:
    """The dimensions after a reduction of some, which are removed or become size 1."""
    return tuple(UNIT if i in reduced else axis for i, axis in enumerate(dims) if keepdim or i not in reduced)


def literal(node: fx.Node, index: int) -> Any:
    """An argument of a call, untyped: a number, a list, a symbol."""
    return node.args[index]


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by position or by name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def pinned_dims(flow: Flow, val: Tensor, why: str) -> Dims:
    """New pinned axes in the shape of a value, for one of several outputs."""
    dims = tuple(prime(size_hint(size), *([] if isinstance(size, int) else [DYNAMIC])) for size in val.shape)
    for axis in dims:
        flow.pin(axis, why)
    return dims


def bias_slot(flow: Flow, node: fx.Node, at: int) -> tuple[str | None, int | None]:
    """The bias parameter at argument `at`, and `at` if a bias is there or can be added."""
    bias = argument(node, at, "bias")
    source = flow.parameter_of(bias)
    if bias is None or (source and len(source[1]) == 1):
        return (source[0] if source else None), at
    return None, None


def report_linear(
    flow: Flow, node: fx.Node, x: Any, weight: Any, dim: int, bias_at: int | None = None, last: bool = True
) -> None:
    """Report a linear operator if the weight is a parameter of two dimensions, possibly transposed.

    `last`: the outputs are the last dimension, and the leading dimensions are those of the input.
    """
    source = flow.parameter_of(weight)
    if source is None or len(source[1]) != 2:
        return
    name, order = source
    contracted = order[dim]
    bias, slot = (None, None) if bias_at is None else bias_slot(flow, node, bias_at)

    def matrix(w: Tensor) -> Tensor:
        return w if contracted == 1 else w.T

    flow.consume(
        Consumer(
            node=node.name, x=x.name, weight=name, dim=contracted, axis=flow.dims(x)[-1],
            features=as_rows,
            matrix=matrix,
            restore=matrix,
            outputs=as_rows if last else None,
            bias=bias,
            bias_at=slot,
        )
    )  # fmt: skip


def report_stack(flow: Flow, node: fx.Node, x: Any, weight: Any, offsets: fx.Node | None = None) -> None:
    """Report every member of a stack of linear operators whose weight, ``(stack, in, out)``, is a parameter.

    `offsets` divide the rows of x among the members; without them, each has an index of the first dimension of x. The
    parameter may be a permuted view.
    """
    source = flow.parameter_of(weight)
    size, axis = flow.dims(weight)[0].size, flow.dims(x)[-1]
    if source is None or not isinstance(x, fx.Node) or (offsets is None and flow.dims(x)[0].size != size):
        return
    name, (stack, inner, out) = source
    for index in range(size):

        def matrix(w: Tensor, index: int = index) -> Tensor:
            part = w.select(stack, index)
            return part if inner > out else part.T

        def restore(w: Tensor) -> Tensor:
            return w if inner > out else w.T

        member = Member(stack, index, offsets.name if offsets is not None else None)
        flow.consume(Consumer(node.name, x.name, name, inner, axis, as_rows, matrix, restore, member=member))


def as_rows(value: Tensor) -> Tensor:
    """A value of shape (..., n) as a matrix of shape (tokens, n)."""
    return value.reshape(-1, value.shape[-1])


def reads_positions(consumer: Consumer) -> bool:
    """Whether the rows of a consumer are positions of a sample, as in a convolution, and not tokens."""
    return consumer.member is None and consumer.outputs is not as_rows


def between_layers(f: Callable[[Tensor], Tensor], features: int = 8) -> Example:
    """An example with two hidden linear layers; `f` maps the 8 features of the second to `features`."""
    return Example(_Between(f, features), (torch.randn(2, 5, 6),))


class _Between(nn.Module):
    """Two hidden layers: the first can always be cut, the second where `f` allows it."""

    def __init__(self, f: Callable[[Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.f, self.a, self.b, self.c = f, nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Any:
        return self.c(self.f(self.b(torch.relu(self.a(x)))))
