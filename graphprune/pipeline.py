"""Passes and pipelines: values with options, run in an order that is checked before anything runs."""

import logging
import re
import time
from abc import ABC, abstractmethod
from ast import literal_eval
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from graphprune.errors import PipelineError
from graphprune.ir.program import Program
from graphprune.registry import Registry
from graphprune.support.memory import watch_peak

log = logging.getLogger(__name__)

PASSES: "Registry[str, type[Pass]]" = Registry("pass")


@dataclass(frozen=True)
class Timings:
    """A fact: the seconds that each pass took, in order, and the most bytes that it held."""

    seconds: tuple[tuple[str, float], ...] = ()
    memory: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Pass(ABC):
    """One step of a pipeline; its fields are its options.

    `needs` and `makes` name the facts that it reads and leaves on the program. A `memory_bounded` pass holds the
    weights of no more than a segment of the graph at a time.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[type, ...]] = ()
    makes: ClassVar[tuple[type, ...]] = ()
    memory_bounded: ClassVar[bool] = False

    @abstractmethod
    def run(self, program: Program) -> Program:
        """The program after this pass; the given one is untouched."""

    def check(self) -> None:  # noqa: B027 - most options cannot be wrong
        """Refuse options that cannot be; asked when a pipeline is made, before anything runs."""

    def __call__(self, program: Program) -> Program:
        """Run, and note the time and the memory that it took."""
        self.check()
        log.debug("%s begins", self)
        start = time.perf_counter()
        with watch_peak() as held:
            after = self.run(program)
        log.info("%s: %.1f s", self.name, time.perf_counter() - start)
        before = program.facts.get(Timings, Timings())
        seconds = (*before.seconds, (self.name, time.perf_counter() - start))
        return after.with_facts(Timings(seconds, (*before.memory, (self.name, held.bytes))))

    def __str__(self) -> str:
        changed = [f for f in fields(self) if getattr(self, f.name) != f.default]
        options = ",".join(f"{f.name}={_text(getattr(self, f.name))}" for f in changed)
        return f"{self.name}{{{options}}}" if options else self.name


@dataclass(frozen=True)
class Pipeline:
    """Passes in order; wrong orders and impossible options are refused when the pipeline is made.

    Raises:
        PipelineError: if a pass needs a fact that no earlier pass makes.
        GraphpruneError: if an option of a pass cannot be.
    """

    passes: tuple[Pass, ...]
    given: tuple[type, ...] = ()

    def __post_init__(self) -> None:
        made = set(self.given)
        for i, step in enumerate(self.passes):
            step.check()
            if missing := [fact.__name__ for fact in step.needs if fact not in made]:
                makers = sorted(n for n, p in PASSES.items() if any(f.__name__ in missing for f in p.makes))
                raise PipelineError(
                    f"pass {i + 1}, {step.name}, needs {', '.join(missing)}, which no earlier pass makes; "
                    f"put one of these before it: {', '.join(makers) or 'none is registered'}"
                )
            made.update(step.makes)

    def __call__(self, program: Program) -> Program:
        """Run every pass."""
        for step in self.passes:
            program = step(program)
        return program

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))

    @classmethod
    def parse(cls, text: str, given: Iterable[type] = ()) -> "Pipeline":
        """The pipeline of a text such as ``analyze,score{by=fasp},select{align=8}``.

        Raises:
            PipelineError: if the text cannot be read, or names an option that a pass does not have.
            RegistryError: if it names an unknown pass.
        """
        return cls(tuple(_pass(part) for part in _parts(text)), tuple(given))


def _parts(text: str) -> list[str]:
    """The passes of a text, divided at the commas outside braces."""
    parts = [part.strip() for part in re.split(r",(?![^{]*\})", text)]
    if not all(parts):
        raise PipelineError(f"there is an empty pass in {text!r}; write them like analyze,score{{by=fasp}}")
    return parts


def _pass(text: str) -> Pass:
    match = re.fullmatch(r"([a-z-]+)(?:\{(.*)\})?", text)
    if match is None:
        raise PipelineError(f"{text!r} is no pass; write it like score{{by=fasp}}")
    kind = PASSES[match[1]]
    options = dict(_option(kind, part) for part in (match[2] or "").split(",") if part.strip())
    return kind(**options)


def _option(kind: type[Pass], text: str) -> tuple[str, Any]:
    key, separator, value = (part.strip() for part in text.partition("="))
    known = [f.name for f in fields(kind)]
    if not separator or key not in known:
        raise PipelineError(f"{kind.name} has no option {key!r}; its options are {', '.join(known)}, written key=value")
    default = next(f.default for f in fields(kind) if f.name == key)
    return key, value if isinstance(default, str) else _value(value, isinstance(default, tuple))


def _value(text: str, several: bool) -> Any:
    """A literal, or the text itself; options that hold several values divide them by `;`."""
    if several:
        return tuple(_value(part, False) for part in text.split(";"))
    try:
        return literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text


def _text(value: Any) -> str:
    return ";".join(map(str, value)) if isinstance(value, tuple) else str(value)
