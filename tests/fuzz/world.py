"""Random modules: a list of steps over a growing pool of values, each step an operator with its operands.

A graph is plain data, so that hypothesis can shrink it: operands are counted from the newest value that fits, and one
number decides everything else about a step. A step that does not apply is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
Layer = TypeVar("Layer", bound=nn.Module)
Made = Callable[..., Any]
Making = Callable[..., Made]  # of some dice and the example's operands
Fits = Callable[..., bool]

#: Few and small, so that unrelated sizes are equal by chance all the time.
SIZES = (8, 4, 6, 12, 2, 3, 1)
LARGEST, DEEPEST = 6000, 6


@dataclass(frozen=True)
class Step:
    """One operator: its operands `x` and `y`, counted from the newest value that fits, and its `choice` of the rest."""

    operation: str
    x: int
    y: int
    choice: int


@dataclass(frozen=True)
class Graph:
    """A module and its inputs, as data. `form` is the kind of the main input; `ending` says how values are read out."""

    form: str
    sizes: tuple[int, int, int]
    steps: tuple[Step, ...]
    ending: int
    seed: int


@dataclass
class Dice:
    """Decisions taken from one number, which shrinks towards the first option of each."""

    number: int
    maker: "Maker"

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        self.number, i = divmod(self.number, len(options))
        return options[i]

    def size(self) -> int:
        """One of the sizes that are equal so often."""
        return self.pick(SIZES)

    def yes(self) -> bool:
        """No, or yes."""
        return self.pick((False, True))

    def dim(self, x: Tensor, first: int = 0) -> int:
        """A dimension of a value, the last one first."""
        return self.pick(range(x.dim() - 1, first - 1, -1))

    def part(self, size: int) -> int:
        """A divisor of a size that is neither 1 nor the size, if there is one."""
        return self.pick([n for n in range(2, size) if size % n == 0] or [size])

    def keep(self, layer: Layer) -> Layer:
        """A layer of the module, with random numbers in all its parameters and statistics."""
        return self.maker.keep(layer)


@dataclass(frozen=True)
class Operation:
    """How a step becomes a function of its operands: `fits` says of what, `make` which."""

    fits: Fits
    partner: Fits | None
    make: Making


OPERATIONS: dict[str, Operation] = {}


def floating(x: Tensor) -> bool:
    """Is it of real numbers, in at least one dimension?"""
    return x.is_floating_point() and x.dim() > 0


def operation(fits: Fits = floating, partner: Fits | None = None) -> Callable[[Making], Making]:
    """Register the maker of a function of one operand that fits, or two if there is a `partner` for it."""

    def register(make: Making) -> Making:
        OPERATIONS[make.__name__] = Operation(fits, partner, make)
        return make

    return register


@dataclass
class Maker:
    """Builds a module step by step, running it on the example as it grows."""

    graph: Graph
    layers: list[nn.Module] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    calls: list[tuple[Made, tuple[int, ...]]] = field(default_factory=list)
    used: set[int] = field(default_factory=set)

    def keep(self, layer: Layer) -> Layer:
        """Register a layer and draw its numbers."""
        generator = torch.Generator().manual_seed(self.graph.seed * 1000 + len(self.layers))
        layer = layer.double().eval()
        for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
            if tensor.is_floating_point():
                with torch.no_grad():
                    tensor.copy_(_numbers(name, tensor, generator))
        self.layers.append(layer)
        return layer

    def step(self, step: Step) -> None:
        """Do a step, if there are operands for it and its result is of reasonable size."""
        kind = OPERATIONS[step.operation]
        operands = self._operands(kind, step)
        if not operands:
            return
        try:
            made = kind.make(Dice(step.choice, self), *(self.values[i] for i in operands))
            self.add(made, operands)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError, ZeroDivisionError):
            return  # torch refuses it: there is no such graph

    def add(self, made: Made, operands: tuple[int, ...], read: bool = False) -> None:
        """Call a function of some values, and keep what it gives; `read` values may hold marks."""
        with torch.no_grad():
            result = made(*(self.values[i] for i in operands))
        results = result if isinstance(result, tuple) else (result,)
        if read or all(map(_is_reasonable, results)):
            self.calls.append((made, operands))
            self.values += results
            self.used |= set(operands)

    def _operands(self, kind: Operation, step: Step) -> tuple[int, ...]:
        newest = range(len(self.values) - 1, -1, -1)
        first = [i for i in newest if kind.fits(self.values[i])]
        if not first:
            return ()
        i = first[step.x % len(first)]
        if kind.partner is None:
            return (i,)
        others = [j for j in newest if floating(self.values[j]) and kind.partner(self.values[i], self.values[j])]
        second = sorted(others, key=lambda j: j == i)  # itself last
        return (i, second[step.y % len(second)]) if second else ()


def _numbers(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers for a parameter or a statistic: none is zero or one, so that leaving one out shows."""
    normal = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    if "var" in name.split(".")[-1]:
        return normal.abs() + 0.5
    if tensor.dim() < 2:
        return normal / 2 + ("weight" in name)
    scaled: Tensor = normal * (1.5 / tensor[0].numel()) ** 0.5
    return scaled


def _is_reasonable(value: Tensor) -> bool:
    ranks = value.dim() <= DEEPEST and 0 < value.numel() <= LARGEST
    return ranks and bool(torch.isfinite(value).all()) and float(value.abs().max()) < 1e4


class Interpreter(nn.Module):
    """The module of a graph: runs its steps, one after the other."""

    def __init__(self, maker: Maker, outputs: Sequence[int], nest: Callable[[list[Tensor]], Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(maker.layers)
        self.calls, self.outputs, self.nest = maker.calls, outputs, nest

    def forward(self, x: Mapping[str, Tensor] | Tensor, *rest: Tensor, other: Tensor | None = None) -> Any:
        first = list(x.values()) if isinstance(x, Mapping) else [x]
        values = [*first, *rest, *([] if other is None else [other])]
        for made, operands in self.calls:
            result = made(*(values[i] for i in operands))
            values += result if isinstance(result, tuple) else (result,)
        return self.nest([values[i] for i in self.outputs])
