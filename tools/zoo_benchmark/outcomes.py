"""Outcome of every stage of a model of the field family."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from graphprune.errors import reason_of
from tools.zoo_benchmark.record import Record, Report

OK = "ok"
STAGES = (
    "captured", "cut", "exact", "written back narrow", "trained", "saved and reloaded", "exported",
)  # fmt: skip


class StageError(Exception):
    """A stage did not do what it should."""


def require(holds: bool, reason: str) -> None:
    """End a stage if a condition does not hold.

    Raises:
        StageError: with the reason.
    """
    if not holds:
        raise StageError(reason)


@dataclass(frozen=True)
class Outcomes:
    """Notes for every stage whether it passed, or the first line of its failure; the run continues after a failure."""

    report: Report

    @property
    def record(self) -> Record:
        """The record that the notes are in."""
        return self.report.record

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Run a stage."""
        try:
            with self.report.stage(name):
                yield
        except Exception as fault:
            kind = "" if isinstance(fault, StageError) else f"{type(fault).__name__}: "
            self.record.outcomes[name] = f"{kind}{reason_of(fault)}"
        else:
            self.record.outcomes[name] = OK
