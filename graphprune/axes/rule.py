"""What an operator rule promises; scores, allocations and refits are in `methods`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from math import isclose, prod
from typing import Any, Protocol

import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from graphprune.axes.algebra import Axis

Dims = tuple[Axis, ...]


@dataclass(frozen=True)
class OpCall:
    """A call of an operator: what a rule makes of a node once its axes are narrower."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Zeros(Enum):
    """What an operator makes of indices at which a masked input is zero."""

    KEPT = "zero wherever all inputs are"
    MOVED = "zero wherever all inputs are, and likewise any other number"
    PRODUCT = "zero wherever one input is"
    LOST = "no longer zero"


@dataclass(frozen=True)
class Example:
    """A small module with inputs, on which the conformance suite tries a rule."""

    module: nn.Module
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Consumer:
    """A linear map ``y = W x`` inside the graph: the parameter `weight` contracts `axis` of the value `x`.

    `features` turns that value into a matrix of shape (tokens, columns * taps); `matrix` the weight into one of
    shape (outputs, columns * taps); `restore` turns such a matrix back.
    `outputs` lays out values in the shape of the node's as (tokens, outputs), in the order of the features; None where
    there is no such layout. `dim` is the dimension of the weight that is contracted; `taps` is 1 but for convolutions.
    `bias` is the parameter that is added to the outputs, None if there is none; `bias_at` the argument of the node at
    which it stands or a new one may be put, None where the operator takes none, or one that is no parameter.
    """

    node: str
    x: str
    weight: str
    dim: int
    axis: Axis
    features: Callable[[Tensor], Tensor]
    matrix: Callable[[Tensor], Tensor]
    restore: Callable[[Tensor], Tensor]
    taps: int = 1
    outputs: Callable[[Tensor], Tensor] | None = None
    bias: str | None = None
    bias_at: int | None = None


class Flow(Protocol):
    """What an operator rule sees and says while axes flow through the graph.

    Values are nodes of the graph or literals; a literal has no dimensions.
    """

    def dims(self, value: object) -> Dims:
        """The axes of a value, one a dimension."""

    def fresh(self, node: fx.Node, pins: str = "") -> Dims:
        """New axes in the shape of the node's value; pinned where sizes are symbolic, or for the reason `pins`."""

    def unify(self, a: Axis, b: Axis) -> None:
        """These two are the same axis; pinned, both, where that cannot be."""

    def pin(self, axis: Axis, why: str) -> None:
        """This axis must keep all its indices."""

    def normalise(self, axis: Axis, why: str) -> None:
        """A cut of this axis changes what remains: its group is not exact."""

    def average(self, axis: Axis, operand: object) -> None:
        """A cut of this axis makes the result greater by its old size over its new one, and changes nothing else."""

    def mix(self, inner: Iterable[Axis], outer: Iterable[Axis]) -> None:
        """Indices of `outer` meet each other here, so they must agree on which indices of `inner` are kept."""

    def least(self, axis: Axis, count: int, unit: int = 1) -> None:
        """At least so many indices of the axis must stay, and a multiple of `unit`."""

    def point(self, value: fx.Node, axis: Axis, output: int = 0) -> None:
        """The integers of a value, or of one of several outputs, are indices into the axis."""

    def look_up(self, axis: Axis, index: object) -> None:
        """A value picks indices of the axis: it points into the same axis, or this one is pinned."""

    def deal(self, value: fx.Node, axis: Axis, ends: object) -> None:
        """The rows of a value belong to indices of an axis; `ends` says where those of each index end."""

    def dealt(self, value: object, ends: object) -> bool:
        """Were the rows of a value dealt out by the same ends?"""

    def contract(self, axis: Axis, *operands: object) -> None:
        """The values are multiplied and summed over this axis."""

    def multiply(self, *axes: Axis) -> None:
        """Two values are multiplied once for every element of these axes; of a parameter `consume` says it already."""

    def consume(self, consumer: Consumer) -> None:
        """A parameter contracts the axis: it can be scored and refitted there."""

    def cache(self, *values: object) -> None:
        """Keys and values: a language model keeps them for every token."""

    def produce(self, parameter: object, dim: int) -> None:
        """The rows of this dimension make the axis."""

    def origin(self, value: object) -> tuple[str, tuple[int, ...]] | None:
        """The parameter that a value is, and where each of its dimensions comes from; None if it is computed."""


class Cut(Protocol):
    """What an operator rule sees while literals are rebuilt after a cut."""

    def dims(self, value: object) -> Dims:
        """The axes of a value, one a dimension."""

    def width(self, axis: Axis) -> int:
        """The size of an axis after the cut."""

    def changed(self, axis: Axis) -> bool:
        """Is the axis narrower than before?"""

    def within(self, axis: Axis, start: int, end: int) -> int:
        """How many of the indices from `start` to `end` are kept."""

    def excess(self, axis: Axis) -> float:
        """How much greater a mean over the axis is than it would be with zeros in the place of what is cut."""


@dataclass(frozen=True)
class MaskedArguments:
    """What the arguments of a call are where one axis is masked.

    `known` has the number that a tensor is there, as far as it is one known number; `holds` tells the tensors that
    have the axis at all, but for those that only select; `dims` in which dimensions of the output it stands;
    `repeated` the tensors that hold the same numbers at every index of it.
    """

    known: Mapping[fx.Node, float]
    holds: frozenset[fx.Node]
    dims: tuple[int, ...]
    repeated: frozenset[fx.Node] = frozenset()

    def at(self, value: object) -> float | None:
        """The number that an argument is; None if that is not known."""
        if isinstance(value, fx.Node):
            return self.known.get(value)
        return float(value) if isinstance(value, (bool, int, float)) else None


class Rule(ABC):
    """Everything about one operator: how its axes relate, and how its literals follow a cut."""

    zeros: Zeros = Zeros.KEPT
    #: Positions of arguments that are added: where one lacks an axis, its indices are not zero.
    summands: tuple[int, ...] = ()
    #: Whether an axis that no input has holds the same numbers at every index.
    repeats: bool = False
    #: Positions of arguments that choose what the result is made of, and are no part of it: indices, conditions.
    selects: tuple[int, ...] = ()
    #: Is every row, an index of the first dimension, made of the same row of each input alone?
    rowwise: bool = False
    #: Positions of arguments in each of which the result is linear, but for its summands.
    linear_in: tuple[int, ...] = ()
    #: ``f(c * x) = c**degree * f(x)`` for c > 0 and the first argument x; None where that does not hold.
    degree: float | None = None

    def masked(self, node: fx.Node, inputs: MaskedArguments) -> float | None:
        """The number that the output is where an axis of it is masked; None if that is not known, NaN or infinite if
        it may be no number, so that the axis is not exact."""
        numbers = {inputs.known.get(value) for value in inputs.holds}
        number = numbers.pop() if len(numbers) == 1 else None
        added = (node.args[i] for i in self.summands if i < len(node.args))
        stays = all(value in inputs.holds or value is None or value == 0 for value in added)
        if self.zeros is Zeros.PRODUCT and any(inputs.at(value) == 0 for value in pytree.tree_leaves(node.args)):
            return 0.0
        return (
            number if stays and (self.zeros is Zeros.MOVED or (number == 0 and self.zeros is not Zeros.LOST)) else None
        )

    @abstractmethod
    def axes(self, flow: Flow, node: fx.Node) -> Dims | list[Dims] | None:
        """The axes of the output; a list of them for several outputs; None where it is no tensor.

        Raises:
            Misaligned: where the axes cannot be aligned; everything that the node touches is pinned then.
        """

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        """The call after the cut; asked for only where an axis of an input or output changed."""
        return OpCall(node.target, node.args, dict(node.kwargs))

    def gain(self, cut: Cut, node: fx.Node) -> float:
        """How much greater the rebuilt call's result is than with zeros in the place of what is cut."""
        return 1.0

    def scale(self, node: fx.Node, factor: Callable[[object], float]) -> float | None:
        """The factor of the output when every input carries its `factor`; None where that cannot be said."""
        if not self.linear_in:
            return None if self.degree is None else factor(node.args[0]) ** self.degree
        found = prod(factor(node.args[i]) for i in self.linear_in if i < len(node.args))
        plain = all(node.args[i] is None for i in self.summands if i < len(node.args))
        return found if plain or isclose(found, 1.0) else None

    def order(self, node: fx.Node, rank: int) -> list[int] | None:
        """Where each output dimension comes from, for an operator that only permutes them; None for all others."""
        return None

    def running(self, node: fx.Node) -> tuple[object, object] | None:
        """The stored mean and variance by which the channels, dimension 1 of the first argument, are normalised; None
        where there are none."""
        return None

    def examples(self) -> Iterator[Example]:
        """Small modules for the conformance suite."""
        return iter(())
