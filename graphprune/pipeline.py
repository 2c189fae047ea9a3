"""Passes and pipelines: values with options, run in an order that is checked before anything runs."""

import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar, get_type_hints

from graphprune.errors import PipelineError
from graphprune.ir.program import DERIVED, Program, require_program
from graphprune.registry import Registry
from graphprune.support import option_text
from graphprune.support.memory import anonymous_bytes, trim_memory, watch_peak

LARGE = 1 << 26  # bytes
log = logging.getLogger(__name__)

PASSES: "Registry[str, type[Pass]]" = Registry("pass")
NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Timings:
    """Fact: the seconds of each pass, in order, and its peak memory in bytes."""

    seconds: tuple[tuple[str, float], ...] = ()
    memory: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Pass(ABC):
    """Step of a pipeline; its fields are its options, except those without `repr`, which only Python can set.

    A pass reads facts of the program and makes others, which may depend on its options.
    """

    name: ClassVar[str]
    makes_with: ClassVar[Mapping[type, str]] = MappingProxyType({})
    """Options with which the pass makes facts that it does not make by default, by fact."""
    one_of: ClassVar[tuple[str, ...]] = ()
    """Options that exclude each other: where a text sets one, the others are not filled in."""
    pure: ClassVar[bool] = False
    """Whether the pass only adds facts, so that it can be omitted where nothing reads them."""
    surveys: ClassVar[bool] = False
    """Whether the pipeline runs the `preflight` of the following passes after this pass."""

    @property
    def needs(self) -> tuple[type, ...]:
        """Facts that it reads, all of which an earlier pass must make."""
        return ()

    @property
    def reads(self) -> tuple[type, ...]:
        """Facts that it also reads where the program has them."""
        return ()

    @property
    def makes(self) -> tuple[type, ...]:
        """Facts that it adds to the program."""
        return ()

    @property
    def invalidates(self) -> tuple[type, ...]:
        """Facts that no longer hold after it, unless it makes them again."""
        return ()

    @property
    def memory_bounded(self) -> bool:
        """Whether it holds the weights of no more than a segment of the graph at a time."""
        return False

    @property
    def resources(self) -> tuple[str, ...]:
        """Resources in addition to the model: ``calibration`` data, ``gradients`` of a loss, an optional package."""
        return ()

    @abstractmethod
    def run(self, program: Program) -> Program:
        """Return the program after this pass; the original is unchanged."""

    def check(self) -> None:  # noqa: B027 - most options cannot be wrong
        """Refuse impossible options; called when a pipeline is made, before anything runs."""

    def preflight(self, program: Program) -> Program:
        """Raise an error if the pass cannot work on this program, before earlier passes start.

        Returns the program for the preflight of later passes.
        """
        return program

    def shared(self, program: Program) -> Program:
        """Return the program with facts that trials of several shares have in common, which the pass then reads."""
        return program

    def before(self, later: Sequence["Pass"]) -> "Pass":
        """Return this pass with options that follow from the passes after it."""
        return self

    def reduced(self, read: Set[type]) -> "Pass":
        """Return this pass without parts whose facts no later pass reads."""
        return self

    def __call__(self, program: Program) -> Program:
        """Run, and record the time and the peak memory.

        Raises:
            PipelineError: if the program lacks a fact that the pass needs.
        """
        require_program(program)
        self.check()
        log.debug("%s begins", self)
        if lacking := missing([self], program.facts):
            raise PipelineError(f"{self} needs {_in_words(lacking)}")
        start, already = time.perf_counter(), anonymous_bytes()
        with watch_peak() as held:
            after = self.run(program)
        if (
            held.bytes - already > LARGE
        ):  # the allocator caches what was freed, which would count in the peak of the next pass
            trim_memory()
        log.info("%s: %.1f s", self.name, time.perf_counter() - start)
        before = program.facts.get(Timings, Timings())
        seconds = (*before.seconds, (self.name, time.perf_counter() - start))
        return after.with_facts(Timings(seconds, (*before.memory, (self.name, held.bytes))))

    def __str__(self) -> str:
        hints = _hints(type(self))
        changed = [f for f in fields(self) if f.repr and getattr(self, f.name) != f.default]
        options = ",".join(f"{f.name}={_written(getattr(self, f.name), hints[f.name])}" for f in changed)
        return f"{self.name}{{{options}}}" if options else self.name


@dataclass(frozen=True)
class Pipeline:
    """Passes in order; a wrong order and impossible options are errors when the pipeline is made.

    `given` are the facts that the program already has. The preflight of `planned` passes runs with that of the others,
    although another pipeline runs these passes.

    Raises:
        PipelineError: if a pass needs a fact that no earlier pass makes.
        GraphpruneError: if an option of a pass is impossible.
    """

    passes: tuple[Pass, ...]
    given: tuple[type, ...] = ()
    planned: tuple[Pass, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.passes, str | Pass) or not all(isinstance(step, Pass) for step in self.passes):
            raise PipelineError(
                f"the passes of a pipeline must be a sequence of them, got {self.passes!r}; write Pipeline((Analyze(), "
                "...)), or Pipeline.parse of a text"
            )
        for step in self.passes:
            step.check()
        passes = resolved(self.passes)
        object.__setattr__(self, "passes", passes)
        made = {*self.given, *DERIVED}
        for i, step in enumerate(passes):
            if lacking := missing([step], made):
                raise PipelineError(f"pass {i + 1}, {step}, needs {_in_words(lacking)}")
            made = made.difference(step.invalidates).union(step.makes, DERIVED)

    def __call__(self, program: Program) -> Program:
        """Run every pass."""
        checked = 0
        for i, step in enumerate(self.passes):
            program = step(program)
            last = not any(following.surveys for following in self.passes[i + 1 : i + 2])
            if step.surveys and last:
                checked = self._preflight(program, max(checked, i + 1), step.makes)
        return program

    def _preflight(self, program: Program, start: int, surveyed: Sequence[type]) -> int:
        """Run the preflight of the passes from `start` on, until one invalidates the `surveyed` facts; return the next
        index."""
        ahead = (*self.passes, *self.planned)
        for i, step in enumerate(ahead[start:], start):
            program = step.preflight(program)
            if set(surveyed) <= {*step.invalidates}:
                return i + 1
        return len(ahead)

    def __str__(self) -> str:
        return " | ".join(map(str, self.passes))

    @classmethod
    def parse(cls, text: str, given: Iterable[type] = ()) -> "Pipeline":
        """Parse the pipeline of a text such as ``analyze | score{by=fasp} | select{align=8}``; commas also separate.

        Raises:
            PipelineError: if the text cannot be read, or names an option that a pass does not have.
            RegistryError: if it names an unknown pass.
        """
        return cls(parse(text), tuple(given))


def resolved(passes: Sequence[Pass], later: Sequence[Pass] = ()) -> tuple[Pass, ...]:
    """Passes with options that follow from later ones, up to the next of the same kind."""
    made = []
    for i, step in enumerate(passes):
        after = (*passes[i + 1 :], *later)
        stop = next((j for j, other in enumerate(after) if type(other) is type(step)), len(after))
        made.append(step.before(after[:stop]))
    return tuple(made)


def missing(passes: Sequence[Pass], made: Iterable[type] = ()) -> tuple[type, ...]:
    """Facts that consecutive passes need and no earlier one makes."""
    known, lacking = {*made, *DERIVED}, list[type]()
    for step in passes:
        lacking += [fact for fact in step.needs if fact not in known and fact not in lacking]
        known = known.difference(step.invalidates).union(step.makes, DERIVED)
    return tuple(lacking)


def live(passes: Sequence[Pass], results: Iterable[type] = ()) -> tuple[Pass, ...]:
    """Passes without pure ones whose facts are never read; the facts in `results` are read at the end."""
    read, remaining = set(results), list[Pass]()
    for step in reversed(passes):
        if step.pure and not read & {*step.makes}:
            continue
        step = step.reduced(read)
        read = read.difference(step.makes).union(step.needs, step.reads)
        remaining.append(step)
    return tuple(reversed(remaining))


def _in_words(facts: Iterable[type]) -> str:
    """Missing facts and the passes that make them, for a message."""
    names, producers = ", ".join(fact.__name__ for fact in facts), ", ".join(_producers(facts))
    return f"{names}, which no earlier pass makes; put one of these before it: {producers or 'none is registered'}"


def _producers(facts: Iterable[type]) -> list[str]:
    """Text of the passes that make one of these facts."""
    written = set()
    for name, kind in PASSES.items():
        made = set(kind().makes)
        written |= {name if fact in made else f"{name}{{{kind.makes_with[fact]}}}" for fact in facts
                    if fact in made or fact in kind.makes_with}  # fmt: skip
    return sorted(written)


def parse(text: str, options: Mapping[str, Any] = NONE) -> tuple[Pass, ...]:
    """Parse the passes of a text; `options` fill the fields of the same names that the text does not set.

    Raises:
        PipelineError: if the text cannot be read, or names an option that a pass does not have.
        RegistryError: if it names an unknown pass.
    """
    parts = option_text.split(text, ",|")
    if not all(parts):
        raise PipelineError(f"there is an empty pass in {text!r}; write passes as in analyze | score{{by=fasp}}")
    return tuple(_pass(part, options) for part in parts)


def filled(kind: type[Pass], options: Mapping[str, Any], **own: Any) -> Pass:
    """Pass with its `own` options, and those of `options` that it has and that its own do not exclude."""
    excluded = {*own, *(kind.one_of if own.keys() & {*kind.one_of} else ())}
    names = {f.name for f in fields(kind)} - excluded
    return kind(**{name: options[name] for name in names & options.keys()}, **own)


def _pass(text: str, options: Mapping[str, Any]) -> Pass:
    match = re.fullmatch(r"([a-z-]+)\s*(?:\{(.*)\})?", text, re.DOTALL)
    if match is None:
        raise PipelineError(f"{text!r} is no pass; write it as in score{{by=fasp}}")
    kind = PASSES[match[1]]
    parts = [part for part in option_text.split(match[2] or "", ",") if part]
    return filled(kind, options, **dict(_option(kind, part, options) for part in parts))


def _option(kind: type[Pass], text: str, options: Mapping[str, Any]) -> tuple[str, Any]:
    key, separator, value = (part.strip() for part in text.partition("="))
    known = [f.name for f in fields(kind) if f.repr]
    if not separator or key not in known:
        raise PipelineError(f"{kind.name} has no option {key!r}; its options are {', '.join(known)}, written key=value")
    hint = _hints(kind)[key]
    if hint != tuple[Pass, ...]:
        return key, option_text.read(value, hint)
    if not re.fullmatch(r"\[.*\]", value, re.DOTALL):
        raise PipelineError(f"{kind.name}{{{key}=...}} takes passes in brackets, such as [score{{by=fasp}} | select]")
    inner = value[1:-1].strip()
    return key, parse(inner, options) if inner else ()


def _written(value: Any, hint: Any) -> str:
    return f"[{' | '.join(map(str, value))}]" if hint == tuple[Pass, ...] else option_text.write(value, hint)


@cache
def _hints(kind: type[Pass]) -> dict[str, Any]:
    """Types of the fields of a pass."""
    return get_type_hints(kind)
