"""What can be cut of every parameter and of a model as a whole, and why the rest cannot."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from torch import fx

from graphprune.axes.algebra import Axis, Prime, Product, primes, resolve

_FRAME = re.compile(r'File "(?P<file>[^"<]+)", line (?P<line>\d+), in \S+\n\s*(?P<code>.*)')


class Freedom(StrEnum):
    """How an axis, and a parameter by the freest of its axes, can be cut."""

    EXACT = "exactly"
    RESCALED = "once averages are rescaled"
    INEXACT = "approximately"
    PINNED = "not at all"

    @property
    def told(self) -> str:
        """As a verb."""
        return "cannot be cut" if self is Freedom.PINNED else f"can be cut {self}"


@dataclass(frozen=True)
class Reason:
    """Why an axis cannot be cut, or not exactly: what is done there, by which operator, on which line of the model.

    `node` names the operator's call in the graph; `operator`, `file` and `code` are empty and `line` is 0 where there
    is none.
    """

    why: str
    node: str = ""
    operator: str = ""
    file: str = ""
    line: int = 0
    code: str = ""

    @classmethod
    def at(cls, why: str, node: fx.Node) -> "Reason":
        """A reason that lies in a node of the graph, with the innermost line of code that is not of torch's layers."""
        if node.op == "placeholder":
            return cls(f"{why}: {node.name}", node.name)
        operator = str(node.target).removeprefix("aten.").removesuffix(".default") if node.op == "call_function" else ""
        frames = list(_FRAME.finditer(str(node.meta.get("stack_trace") or "")))
        own = [frame for frame in frames if "/torch/" not in frame["file"]] or frames
        if not own:
            return cls(why, node.name, operator)
        return cls(why, node.name, operator, own[-1]["file"], int(own[-1]["line"]), own[-1]["code"].strip())

    @property
    def place(self) -> str:
        """File and line in short; nothing where there is no line."""
        return f"{Path(self.file).name}:{self.line}" if self.file else ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file else ""
        there = ", ".join(filter(None, (self.operator, place)))
        return f"{self.why}{f' ({there})' if there else ''}{f': {self.code}' if self.code else ''}"


@dataclass(frozen=True)
class DimensionPart:
    """An axis inside a dimension: its size, how it can be cut, its group, and why not better."""

    size: int
    freedom: Freedom
    group: str
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Dimension:
    """A dimension of a parameter, made of `parts`, which are none where its size is 1.

    `template` tells how, as in ``6 x 8`` or ``4 | 2``, with ``{i}`` in the place of part i.
    """

    size: int
    template: str
    parts: tuple[DimensionPart, ...]

    @classmethod
    def of(cls, axis: Axis, part: Callable[[Prime], DimensionPart]) -> "Dimension":
        """A dimension with this axis; `part` tells about its primes."""
        found = list(dict.fromkeys(primes(axis)))
        return cls(axis.size, _template(resolve(axis), found), tuple(map(part, found)))

    @property
    def structure(self) -> str:
        """How it is made of its parts: ``48 = 6 x 8``."""
        return self.marked([""] * len(self.parts))

    def marked(self, marks: Sequence[str]) -> str:
        """How it is made of its parts, each followed by its mark: ``48 = 6~ x 8!``."""
        told = self.template.format(*(f"{part.size}{mark}" for part, mark in zip(self.parts, marks, strict=True)))
        return told if self.template in ("{0}", str(self.size)) else f"{self.size} = {told}"


@dataclass(frozen=True)
class Explanation:
    """A parameter, its dimensions, and what can be cut of it."""

    parameter: str
    dimensions: tuple[Dimension, ...]

    @property
    def freedom(self) -> Freedom:
        """How the freest of its axes can be cut."""
        found = {part.freedom for dimension in self.dimensions for part in dimension.parts}
        return next((freedom for freedom in Freedom if freedom in found), Freedom.PINNED)

    def __str__(self) -> str:
        shape = " x ".join(str(dimension.size) for dimension in self.dimensions) or "a number"
        lines = [f"{self.parameter}  {shape}  {self.freedom.told}"]
        for i, dimension in enumerate(self.dimensions):
            lines.append(f"  dimension {i}: {dimension.structure}")
            lines += [f"    {line}" for part in dimension.parts for line in _told(part)]
            lines += [] if dimension.parts else ["    there is nothing to cut"]
        return "\n".join(lines)


@dataclass(frozen=True)
class FreedomCounts:
    """How many of all parameters can be cut how, each counted once, and how many could go at most.

    A parameter tensor counts with all its elements for the freest axis in any of its dimensions. `removable` holds,
    for every freedom, how many elements are gone when all groups of that freedom and of greater ones are as narrow as
    they may be.
    """

    total: int
    counts: Mapping[Freedom, int]
    removable: Mapping[Freedom, int]

    def share(self, count: int) -> float:
        """A count as a share of all parameters; 0 of none."""
        return count / self.total if self.total else 0.0

    def __str__(self) -> str:
        lines = [f"{self.total:,} parameters"]
        for freedom, count in self.counts.items():
            most = self.share(self.removable.get(freedom, 0))
            gone = f"; at most {most:.1%} of all can go{' with those above' * (len(lines) > 1)}" if most else ""
            lines += [f"  {self.share(count):6.1%}  {freedom.told}{gone}"] if count else []
        return "\n".join(lines)


def _template(axis: Axis, found: Sequence[Prime]) -> str:
    if isinstance(axis, Prime):
        return f"{{{found.index(axis)}}}"
    if not axis.parts:
        return str(axis.size)
    inside = (_template(part, found) for part in axis.parts)
    between = " x " if isinstance(axis, Product) else " | "
    pairs = zip(axis.parts, inside, strict=True)
    return between.join(text if isinstance(part, Prime) else f"({text})" for part, text in pairs)


def _told(part: DimensionPart) -> list[str]:
    head = f"{part.size} {part.freedom.told}" + (f", group {part.group}" if part.group else "")
    return [head, *(f"  because {reason}" for reason in part.reasons)]
