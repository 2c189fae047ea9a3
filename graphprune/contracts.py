"""What a plug-in promises: an operator rule, a score, an allocation, a reconstruction, an exporter."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, fx, nn

from graphprune.axes import Axis

Dims = tuple[Axis, ...]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Example:
    """A small module with inputs, on which the conformance suite tries a rule."""

    module: nn.Module
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Consumer:
    """A linear map ``y = W x`` inside the graph: the parameter `weight` contracts `axis` of the value `x`.

    `features` turns that value into a matrix of shape (tokens, columns * taps); `matrix` the weight into one of
    shape (outputs, columns * taps); `restore` turns such a matrix back, given the number of columns.
    `dim` is the dimension of the weight that is contracted; `taps` is 1 but for convolutions.
    """

    node: str
    x: str
    weight: str
    dim: int
    axis: Axis
    features: Callable[[Tensor], Tensor]
    matrix: Callable[[Tensor], Tensor]
    restore: Callable[[Tensor, Tensor], Tensor]
    taps: int = 1


class Flow(Protocol):
    """What an operator rule sees and says while axes flow through the graph."""

    def dims(self, value: object) -> Dims: ...
    def shape(self, value: object) -> tuple[int, ...]: ...
    def fresh(self, size: int, *pins: str) -> Axis: ...
    def result(self, node: fx.Node) -> Dims: ...
    def unify(self, a: Axis, b: Axis, why: str = ...) -> None: ...
    def pin(self, axis: Axis, why: str) -> None: ...
    def normalise(self, axis: Axis, why: str) -> None: ...
    def mix(self, inner: Sequence[Axis], outer: Sequence[Axis]) -> None: ...
    def consume(self, consumer: Consumer) -> None: ...


class Cut(Protocol):
    """What an operator rule sees while literals are rebuilt after a cut."""

    def dims(self, value: object) -> Dims: ...
    def shape(self, value: object) -> tuple[int, ...]: ...
    def width(self, axis: Axis) -> int: ...
    def changed(self, axis: Axis) -> bool: ...
    def kept(self, axis: Axis) -> list[int]: ...


class Rule(ABC):
    """Everything about one operator: how its axes relate, and how its literals follow a cut."""

    #: Does it map a zero index of its inputs to a zero index of its output?
    zero: bool = True

    @abstractmethod
    def axes(self, flow: Flow, node: fx.Node) -> Any:
        """The `Dims` of the output; a list of them for several outputs; None for no tensor."""

    def rebuild(self, cut: Cut, node: fx.Node) -> Arguments:
        """The arguments after the cut; called only where a touched axis changed."""
        return node.args, node.kwargs

    def examples(self) -> Iterator[Example]:
        """Small modules for the conformance suite."""
        return iter(())


@dataclass
class ExportReport:
    """What an exporter wrote and how it checked it."""

    target: str
    output: Path
    files: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class Exporter(Protocol):
    """Writes a saved model for a target; verified before it gets its final name."""

    def __call__(self, source: Path, output: Path, *, force: bool = ...) -> ExportReport: ...


Table = Mapping[str, Any]
