"""Records of the facts that passes read, leave and drop, compared with what they declare."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import pytest

from graphprune.ir import program as programs
from graphprune.ir.program import Program
from graphprune.pipeline import Pass, Timings


class Run(NamedTuple):
    """A run of a pass: the facts that it got, and those among them, or missing from them, that it looked for."""

    got: dict[type, Any]
    read: set[type]


class Recorder(dict[type, Any]):
    """Facts that note which of them the running pass reads, where it did not make them itself."""

    running: ClassVar[list[Run]] = []

    def __init__(self, facts: Any) -> None:
        super().__init__(facts)
        self.owner = self.running[-1] if self.running else None

    def _note(self, kind: Any) -> None:
        run = self.running[-1] if self.running else None
        if run is not None and self.owner is run and run.got.get(kind) is super().get(kind):
            run.read.add(kind)

    def __getitem__(self, kind: type) -> Any:
        self._note(kind)
        return super().__getitem__(kind)

    def get(self, kind: type, default: Any = None) -> Any:
        self._note(kind)
        return super().get(kind, default)

    def __contains__(self, kind: object) -> bool:
        self._note(kind)
        return super().__contains__(kind)


@contextmanager
def broken_promises() -> Iterator[list[str]]:
    """Broken promises of the passes that run in the block."""
    broken, run = list[str](), Pass.__call__

    def recorded(self: Pass, program: Program) -> Program:
        Recorder.running.append(Run({**program.facts}, set()))
        before = {*program.facts} - {Timings}
        try:
            after = run(self, dataclasses.replace(program, facts=Recorder(program.facts)))
        finally:
            read = Recorder.running.pop().read
        broken.extend(f"{self} reads {fact.__name__}" for fact in read - {*self.needs, *self.reads, Timings})
        if {*after.facts} - {Timings} != before:  # a pass that changed nothing need not leave anything
            broken.extend(f"{self} does not leave {fact.__name__}" for fact in {*self.makes} - {*after.facts})
        lost = before - {*after.facts} - {*self.invalidates}
        broken.extend(f"{self} drops {fact.__name__}" for fact in lost)
        return after

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "MappingProxyType", Recorder)
        patch.setattr(Pass, "__call__", recorded)
        yield broken
    Recorder.running.clear()
