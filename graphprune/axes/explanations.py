"""Explanations of what can be cut of every parameter and of a whole model, with the reasons why the rest cannot."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from torch import fx

from graphprune.axes.algebra import Axis, Prime, Product, primes, resolve

_FRAME = re.compile(r'File "(?P<file>[^"<]+)", line (?P<line>\d+), in \S+\n\s*(?P<code>.*)')


class Freedom(StrEnum):
    """Degree to which an axis can be cut; that of a parameter is the highest of its axes."""

    EXACT = "exactly"
    RESCALED = "once averages are rescaled"
    INEXACT = "approximately"
    PINNED = "not at all"

    @property
    def description(self) -> str:
        """Degree as a verb."""
        return "cannot be cut" if self is Freedom.PINNED else f"can be cut {self}"


@dataclass(frozen=True)
class Reason:
    """Reason why an axis cannot be cut, or not exactly, with the operator and the line of the model.

    `node` names the operator's call in the graph. Where a part is unknown, `operator`, `file` and `code` are empty and
    `line` is 0.
    """

    why: str
    node: str = ""
    operator: str = ""
    file: str = ""
    line: int = 0
    code: str = ""

    @classmethod
    def at(cls, why: str, node: fx.Node) -> "Reason":
        """Reason at a node of the graph, with the innermost line of code outside torch."""
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
        """Name of the file and line; empty where there is no line."""
        return f"{Path(self.file).name}:{self.line}" if self.file else ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file else ""
        location = ", ".join(filter(None, (self.operator, place)))
        return f"{self.why}{f' ({location})' if location else ''}{f': {self.code}' if self.code else ''}"


@dataclass(frozen=True)
class DimensionPart:
    """Axis inside a dimension: its size, how it can be cut, its group, and the reasons why not better."""

    size: int
    freedom: Freedom
    group: str
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Dimension:
    """Dimension of a parameter, composed of `parts`; a dimension of size 1 has none.

    `template` is the composition, as in ``6 x 8`` or ``4 | 2``, with ``{i}`` in the place of part i.
    """

    size: int
    template: str
    parts: tuple[DimensionPart, ...]

    @classmethod
    def of(cls, axis: Axis, part: Callable[[Prime], DimensionPart]) -> "Dimension":
        """Dimension with this axis; `part` describes each of its primes."""
        distinct = list(dict.fromkeys(primes(axis)))
        return cls(axis.size, _template(resolve(axis), distinct), tuple(map(part, distinct)))

    @property
    def structure(self) -> str:
        """Composition of the dimension: ``48 = 6 x 8``."""
        return self.marked([""] * len(self.parts))

    def marked(self, marks: Sequence[str]) -> str:
        """Composition of the dimension, with a mark after each part: ``48 = 6~ x 8!``."""
        text = self.template.format(*(f"{part.size}{mark}" for part, mark in zip(self.parts, marks, strict=True)))
        return text if self.template in ("{0}", str(self.size)) else f"{self.size} = {text}"


@dataclass(frozen=True)
class Explanation:
    """Explanation of a parameter and its dimensions."""

    parameter: str
    dimensions: tuple[Dimension, ...]

    @property
    def freedom(self) -> Freedom:
        """Highest freedom of its axes."""
        freedoms = {part.freedom for dimension in self.dimensions for part in dimension.parts}
        return next((freedom for freedom in Freedom if freedom in freedoms), Freedom.PINNED)

    def __str__(self) -> str:
        shape = " x ".join(str(dimension.size) for dimension in self.dimensions) or "a number"
        lines = [f"{self.parameter}  {shape}  {self.freedom.description}"]
        for i, dimension in enumerate(self.dimensions):
            lines.append(f"  dimension {i}: {dimension.structure}")
            lines += [f"    {line}" for part in dimension.parts for line in _describe(part)]
            lines += [] if dimension.parts else ["    there is nothing to cut"]
        return "\n".join(lines)


@dataclass(frozen=True)
class FreedomCounts:
    """Numbers of parameters by freedom, each counted once, and the numbers that can be removed at most.

    All elements of a parameter count for the highest freedom of its axes. `removable` holds, for every freedom, the
    number of elements removed when all groups of that freedom and of higher ones have their least width.
    """

    total: int
    counts: Mapping[Freedom, int]
    removable: Mapping[Freedom, int]

    def share(self, count: int) -> float:
        """Count as a share of all parameters; 0 if there are none."""
        return count / self.total if self.total else 0.0

    def __str__(self) -> str:
        lines = [f"{self.total:,} parameters"]
        for freedom, count in self.counts.items():
            most = self.share(self.removable.get(freedom, 0))
            removed = (
                f"; at most {most:.1%} of all can be removed{' with those above' * (len(lines) > 1)}" if most else ""
            )
            lines += [f"  {self.share(count):6.1%}  {freedom.description}{removed}"] if count else []
        return "\n".join(lines)


def _template(axis: Axis, distinct: Sequence[Prime]) -> str:
    if isinstance(axis, Prime):
        return f"{{{distinct.index(axis)}}}"
    if not axis.parts:
        return str(axis.size)
    inside = (_template(part, distinct) for part in axis.parts)
    between = " x " if isinstance(axis, Product) else " | "
    pairs = zip(axis.parts, inside, strict=True)
    return between.join(text if isinstance(part, Prime) else f"({text})" for part, text in pairs)


def _describe(part: DimensionPart) -> list[str]:
    head = f"{part.size} {part.freedom.description}" + (f", group {part.group}" if part.group else "")
    return [head, *(f"  because {reason}" for reason in part.reasons)]
