"""Records as Markdown: a row a family, and below it what did not go well, with the reason."""

from collections.abc import Callable, Iterator, Sequence
from statistics import median

from tests import zoo
from tools.zoo_benchmark.record import Record

FAMILIES = ("hf/clm", "hf/enc", "hf/s2s", "hf/img", "hf/aud", "hf/seg", "hf/depth", "hf/dual", "hf/base", "timm", "tv")
ANALYSIS = "analyze"
HEAD = (
    "family", "models", "captured", "analysed", "cut", "exact", "written back", "parameters removed", "capture",
    "analysis", "of capture",
)  # fmt: skip
REASON = 160  # characters


def table(records: Sequence[Record]) -> Iterator[str]:
    """The lines of the table of one tool: counts, and medians over the models that got that far."""
    yield from _lines(HEAD)
    for family in FAMILIES:
        if own := [record for record in records if zoo.family(record.name) == family]:
            yield _row(family, own)
    yield _row("total", records)


def failures(records: Sequence[Record]) -> Iterator[str]:
    """The lines that name every model which is not exact or not written back, and why."""
    for record in records:
        if record.exact and (record.written_back or not record.remark):
            continue
        stage = "" if record.stage == "done" else f" ({record.stage})"
        yield f"- `{record.name}`{stage}: {' '.join((record.fault or record.remark).split())[:REASON]}"


def _lines(head: Sequence[str]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "|".join(["---"] * len(head)) + "|"


def _row(family: str, records: Sequence[Record]) -> str:
    def passed(stage: str) -> int:
        return sum(stage in record.passed for record in records)

    exact = [record for record in records if record.exact]
    cells = (
        family, len(records), passed("trace"), passed(ANALYSIS), passed("apply"), len(exact),
        sum(record.written_back for record in records), _median(exact, lambda r: r.removed, "{:.0%}"),
        _median(records, lambda r: r.seconds.get("trace"), "{:.2f} s"),
        _median(records, lambda r: 1000 * r.seconds[ANALYSIS] if ANALYSIS in r.seconds else None, "{:.0f} ms"),
        _median(records, _share, "{:.1%}"),
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def _share(record: Record) -> float | None:
    """The time of the analysis as a share of that of the capture."""
    return record.seconds[ANALYSIS] / record.seconds["trace"] if ANALYSIS in record.seconds else None


def _median(records: Sequence[Record], of: Callable[[Record], float | None], text: str) -> str:
    found = [value for record in records if (value := of(record)) is not None]
    return text.format(median(found)) if found else "-"
