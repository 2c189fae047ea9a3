"""Contract of an operator rule: what it reports to the analysis, and what it sees while a cut graph is rebuilt."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import isclose, prod
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from graphprune.axes.algebra import Axis

Dims = tuple[Axis, ...]


@dataclass(frozen=True)
class OpCall:
    """The call that replaces a node once its axes are narrower."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Zeros(Enum):
    """Value of the output at the indices at which a masked input is zero."""

    PRESERVED = "zero wherever all inputs are"
    MOVED = "zero wherever all inputs are, and likewise any other number"
    PRODUCT = "zero wherever one of its factors is"
    LOST = "no longer zero"


@dataclass(frozen=True)
class Example:
    """A small module with inputs, on which the conformance suite tests a rule."""

    module: nn.Module
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Member:
    """The place of a linear operator in a stack, such as one expert among several.

    Dimension `dim` of the weight selects it by its `index`. It multiplies rows of its own: with `offsets`, a node, the
    rows of x from ``offsets[index - 1]`` to ``offsets[index]``; without, those at its index of the first dimension.
    """

    dim: int
    index: int
    offsets: str | None = None

    def rows(self, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """The rows that it multiplies, given the values of nodes by name."""
        if self.offsets is None:
            return x[self.index]
        ends = values[self.offsets]
        return x[int(ends[self.index - 1]) if self.index else 0 : int(ends[self.index])]


@dataclass(frozen=True)
class Consumer:
    """A linear operator ``Y = W X`` in the graph: the parameter `weight` contracts `axis` of the value `x`.

    `features` lays out `x` as a matrix X^T of shape (tokens, columns * taps), `matrix` lays out the weight as W of
    shape (outputs, columns * taps), and `restore` is the inverse of `matrix`. `taps` is the number of kernel elements
    of a convolution, 1 otherwise. `outputs` lays out values in the shape of the node's output as (tokens, outputs),
    with the same rows as `features`; None where there is no such layout. `dim` is the contracted dimension of the
    weight. `bias` names the parameter added to the outputs, None if there is none. `bias_at` is the position of the
    argument that holds this bias or can take a new one; None where the operator takes no bias, or one that is no
    parameter. `member` is its place in a stack whose node multiplies by several operators; for such, `restore` returns
    its slice of the weight.
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
    member: Member | None = None

    @property
    def key(self) -> str:
        """Name of its statistics: that of its node, with the index of a member of a stack."""
        return self.node if self.member is None else f"{self.node}[{self.member.index}]"

    @property
    def reads_values(self) -> bool:
        """Whether its features are the values that it reads, which other such consumers share."""
        return self.taps == 1 and self.member is None

    def columns(self, indices: Tensor) -> Tensor:
        """The columns of `matrix` of these indices of the contracted dimension, shape (indices * taps,)."""
        return (indices[:, None] * self.taps + torch.arange(self.taps)).flatten()


class Flow(Protocol):
    """The analysis as an operator rule sees it: the rule reads the axes of its inputs and reports how they relate.

    Values are nodes of the graph or literals; a literal has no dimensions.
    """

    def dims(self, value: object) -> Dims:
        """The axes of a value, one per dimension."""

    def fresh(self, node: fx.Node, pins: str = "") -> Dims:
        """New axes in the shape of the node's value, pinned where the size is symbolic, or everywhere for `pins`."""

    def unify(self, a: Axis, b: Axis) -> None:
        """Make two axes one; pin both where their structures cannot be aligned."""

    def pin(self, axis: Axis, why: str) -> None:
        """Forbid pruning this axis."""

    def mark_inexact(self, axis: Axis, why: str) -> None:
        """Report that pruning this axis changes the remaining values, so that it does not equal masking."""

    def average(self, axis: Axis, operand: object) -> None:
        """Report a mean over this axis: pruning multiplies the result by old size / new size, and nothing else."""

    def share_selection(self, inner: Iterable[Axis], outer: Iterable[Axis]) -> None:
        """Require the same retained indices of `inner` for all indices of `outer`, because the latter interact here."""

    def require_width(self, axis: Axis, least: int, multiple: int = 1) -> None:
        """Require at least `least` retained indices, and a multiple of `multiple`."""

    def element_size(self, value: fx.Node) -> int:
        """Bytes of an element of a value where the model runs, in the type in which its weights are stored."""

    def mark_indices(self, value: fx.Node, axis: Axis, output: int = 0) -> None:
        """Report that the integers of a value, or of one of its outputs, are indices into the axis."""

    def look_up(self, axis: Axis, index: object) -> None:
        """Unify the axis with the one into which `index` points; pin it where that is unknown."""

    def partition_rows(self, value: fx.Node, axis: Axis, offsets: object) -> None:
        """Report that the rows of a value are a ragged batch over the axis: index i owns the rows up to offsets[i]."""

    def has_row_partition(self, value: object, offsets: object) -> bool:
        """Whether the rows of a value are partitioned by these offsets."""

    def contract(self, axis: Axis, *operands: object) -> None:
        """Report that the operands are multiplied and summed over this axis."""

    def count_macs(self, *axes: Axis) -> None:
        """Report a product: one multiply-accumulate per element of these axes.

        Linear operators that report none are counted by the elements of their weight and output.
        """

    def consume(self, consumer: Consumer) -> None:
        """Report a linear operator: its input axis can be scored and its weight reconstructed."""

    def cache_kv(self, *values: object) -> None:
        """Report keys and values, which a language model stores for every token."""

    def produce(self, parameter: object, dim: int) -> None:
        """Report that this dimension of a parameter produces the axis."""

    def parameter_of(self, value: object) -> tuple[str, tuple[int, ...]] | None:
        """The parameter of which a value is a permuted view, and the source of each dimension; None if it has none."""


class Cut(Protocol):
    """The pruned widths as an operator rule sees them while a node's literals are rebuilt."""

    def dims(self, value: object) -> Dims:
        """The axes of a value, one per dimension."""

    def width(self, axis: Axis) -> int:
        """The size of an axis after the cut."""

    def changed(self, axis: Axis) -> bool:
        """Whether the axis is narrower than before."""

    def count_retained(self, axis: Axis, start: int, end: int) -> int:
        """Number of retained indices from `start` to `end`."""

    def mean_gain(self, axis: Axis) -> float:
        """Mean over the pruned axis divided by the mean over the masked one: old size / new size, or 1."""


@dataclass(frozen=True)
class MaskedArguments:
    """The arguments of a call at the masked indices of one axis.

    `numbers` holds the constant that a tensor equals at those indices, where it is one known constant. `carriers` are
    the tensors that have the axis, without those that only select. `dims` are the output dimensions in which the axis
    stands, and `places` those of every carrier. `repeated` are the tensors with the same numbers at every index of the
    axis.
    """

    numbers: Mapping[fx.Node, float]
    carriers: frozenset[fx.Node]
    dims: tuple[int, ...]
    repeated: frozenset[fx.Node] = frozenset()
    places: Mapping[fx.Node, tuple[int, ...]] = field(default_factory=dict)

    def number_of(self, value: object) -> float | None:
        """The number that an argument equals; None if it is unknown."""
        if isinstance(value, fx.Node):
            return self.numbers.get(value)
        return float(value) if isinstance(value, (bool, int, float)) else None


class Rule(ABC):
    """Everything about one operator: how its axes relate, and how its literals follow a cut."""

    zeros: Zeros = Zeros.PRESERVED
    #: Positions of arguments that are added: where one lacks an axis, its indices are not zero.
    summands: tuple[int, ...] = ()
    #: Does an axis that no input has hold the same numbers at every index?
    repeats: bool = False
    #: Does the result have the shape of its first argument, but none of its values?
    shape_alone: bool = False
    #: Positions of arguments that select elements of the others without contributing values: indices, conditions.
    selects: tuple[int, ...] = ()
    #: Does each row, an index of the first dimension, depend on the same row of each input alone?
    rowwise: bool = False
    #: Positions of arguments in each of which the result is linear, apart from its summands.
    linear_in: tuple[int, ...] = ()
    #: ``f(c * x) = c**degree * f(x)`` for c > 0 and the first argument x; None where that does not hold.
    degree: float | None = None

    def masked_value(self, node: fx.Node, inputs: MaskedArguments) -> float | None:
        """The constant that the output equals at the masked indices of an axis; None if it is not constant.

        NaN or infinity if it may not be finite, so that the axis is not exact.
        """
        numbers = {inputs.numbers.get(value) for value in inputs.carriers}
        number = numbers.pop() if len(numbers) == 1 else None
        summands = (node.args[i] for i in self.summands if i < len(node.args))
        masked_alike = all(value in inputs.carriers or value is None or value == 0 for value in summands)
        if self.zeros is Zeros.PRODUCT and any(inputs.number_of(value) == 0 for value in self.factors(node, inputs)):
            return 0.0
        if self.zeros is Zeros.MOVED or (number == 0 and self.zeros is not Zeros.LOST):
            return number if masked_alike else None
        return None

    def factors(self, node: fx.Node, inputs: MaskedArguments) -> Sequence[object]:
        """The factors of a PRODUCT: arguments any of which makes the output zero where it is zero.

        An argument that has the axis only in a dimension that the output lacks is none of them.
        """
        return ()

    @abstractmethod
    def axes(self, flow: Flow, node: fx.Node) -> Dims | list[Dims] | None:
        """The axes of the output; a list of them for several outputs; None where it is no tensor.

        Raises:
            Misaligned: where the axes cannot be aligned; all axes of the node's inputs and outputs are pinned then.
        """

    def rebuild(self, cut: Cut, node: fx.Node) -> OpCall:
        """The call after the cut; requested only where an axis of an input or output changed."""
        return OpCall(node.target, node.args, dict(node.kwargs))

    def gain(self, cut: Cut, node: fx.Node) -> float:
        """Result of the pruned call divided by the result of the masked one, where that is one factor."""
        return 1.0

    def scale(self, node: fx.Node, factor: Callable[[object], float]) -> float | None:
        """The factor of the output when every input carries its `factor`; None where there is no such factor."""
        if not self.linear_in:
            return None if self.degree is None else factor(node.args[0]) ** self.degree
        linear = [node.args[i] for i in self.linear_in if i < len(node.args)]
        others = [value for value in node.all_input_nodes if value not in linear]
        result = prod(map(factor, linear))
        homogeneous = all(node.args[i] is None for i in self.summands if i < len(node.args))
        unscaled = all(isclose(factor(value), 1.0) for value in others)
        return result if unscaled and (homogeneous or isclose(result, 1.0)) else None

    def permutation(self, node: fx.Node, rank: int) -> list[int] | None:
        """The source of each output dimension, for an operator that only permutes them; None for all others."""
        return None

    def running_statistics(self, node: fx.Node) -> tuple[object, object] | None:
        """The stored mean and variance that normalize the channels, dimension 1 of the first argument; None if there
        are none."""
        return None

    def examples(self) -> Iterator[Example]:
        """Small modules for the conformance suite."""
        return iter(())
