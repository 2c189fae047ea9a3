"""Table of the field family: a row for each model, a column for each stage, and the failures below."""

from collections.abc import Iterator, Sequence

from tools.zoo_benchmark.outcomes import OK, STAGES
from tools.zoo_benchmark.record import Record
from tools.zoo_benchmark.table import line, shortened

FAILS = "fails"
MISSED = "-"  # a stage that was not reached


def field_table(records: Sequence[Record]) -> Iterator[str]:
    """The lines of the table, then those of the failures."""
    yield line(["model", "parameters removed", *STAGES])
    yield line(["---"] * (2 + len(STAGES)))
    for record in records:
        yield line([record.name.removeprefix("field/"), f"{record.removed:.0%}", *(_cell(record, s) for s in STAGES)])
    passed = [sum(record.outcomes.get(stage) == OK for record in records) for stage in STAGES]
    yield line([f"total of {len(records)}", "", *passed])
    yield ""
    for record in records:
        yield from _failures(record)


def _cell(record: Record, stage: str) -> str:
    outcome = record.outcomes.get(stage)
    return MISSED if outcome is None else OK if outcome == OK else FAILS


def _failures(record: Record) -> Iterator[str]:
    """The first line of each failure of a model; a process that ended early has its own."""
    name = record.name.removeprefix("field/")
    if record.fault:
        yield f"- `{name}` ({record.stage}): {shortened(record.fault)}"
    for stage, outcome in record.outcomes.items():
        if outcome != OK:
            yield f"- `{name}` ({stage}): {shortened(outcome)}"
