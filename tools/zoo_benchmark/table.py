"""Records as Markdown: a row a family, and below it what did not go well, with the reason."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from textwrap import shorten

from tests import zoo
from tools.zoo_benchmark.noise import PASSED
from tools.zoo_benchmark.record import LATE, LEAST, Record

FAMILIES = {
    "hf/clm": "transformers: causal language models", "hf/enc": "transformers: text encoders",
    "hf/s2s": "transformers: sequence to sequence", "hf/img": "transformers: image classifiers",
    "hf/aud": "transformers: audio classifiers", "hf/seg": "transformers: segmentation",
    "hf/depth": "transformers: depth estimation", "hf/dual": "transformers: dual encoders",
    "hf/base": "transformers: others", "timm": "timm", "tv": "torchvision",
}  # fmt: skip
ANALYSIS = "analyze"
REASON = 160  # characters
PACKAGES = re.compile(r"\S*/site-packages/")  # where they are installed is nobody's concern
Column = tuple[str, Callable[[Sequence[Record]], object]]


def table(records: Sequence[Record], columns: Sequence[Column]) -> Iterator[str]:
    """The lines of the table of one tool."""
    yield line(["family", *(head for head, _ in columns)])
    yield line(["---"] * (1 + len(columns)))
    for family, title in FAMILIES.items():
        if own := _of(family, records):
            yield line([title, *(cell(own) for _, cell in columns)])
    yield line(["total", *(cell(records) for _, cell in columns)])


def comparison(records: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    """The lines of one table for several tools, by name: exact models, the median share of parameters removed from
    these, and how many models ran out of time."""
    families = [(title, partial(_of, name)) for name, title in FAMILIES.items()] + [("total", list)]
    yield line(["exact models (median of parameters removed)", "models", *records])
    yield line(["---"] * (2 + len(records)))
    for name, own in families:
        if models := max(len(own(found)) for found in records.values()):
            yield line([name, models, *(_compared(own(found)) for found in records.values())])


def _compared(records: Sequence[Record]) -> str:
    late = sum(record.fault.startswith(LATE) for record in records)
    return f"{_exact(records)} ({_removed(records)}){f', {late} out of time' if late else ''}"


def _of(family: str, records: Sequence[Record]) -> list[Record]:
    return [record for record in records if zoo.family(record.name) == family]


def failures(records: Sequence[Record]) -> Iterator[str]:
    """The lines that name every model which is not exact or not written back, and why."""
    for record in records:
        reason = record.fault or record.remark or record.mode
        if not reason or (record.exact and record.written_back and not record.padded):
            continue
        stage = "" if record.stage == "done" else f" ({record.stage})"
        mode = f" [{record.mode}]" if record.mode not in ("", reason) else ""
        yield f"- `{record.name}`{mode}{stage}: {shortened(reason)}"


def shortened(reason: str) -> str:
    """One line, without the place where packages are installed."""
    return shorten(PACKAGES.sub("", reason), REASON, placeholder=" ...")


def line(cells: Sequence[object]) -> str:
    """A row of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def _passed(stage: str, records: Sequence[Record]) -> int:
    return sum(stage in record.passed for record in records)


def _pruned(records: Sequence[Record]) -> int:
    return sum(record.removed >= LEAST for record in records)


def _exact(records: Sequence[Record]) -> int:
    return sum(record.exact for record in records)


def _written_back(records: Sequence[Record]) -> int:
    return sum(record.written_back for record in records)


def _padded(records: Sequence[Record]) -> int:
    return sum(record.padded > 0 for record in records)


def _removed(records: Sequence[Record]) -> str:
    return _median([record.removed for record in records if record.exact], "{:.0%}")


def _seconds(stage: str, records: Sequence[Record]) -> str:
    return _median([record.seconds[stage] for record in records if stage in record.seconds], "{:.2f} s")


def _analysis(records: Sequence[Record]) -> str:
    return _median([1000 * record.seconds[ANALYSIS] for record in records if ANALYSIS in record.seconds], "{:.0f} ms")


def _share(records: Sequence[Record]) -> str:
    """The time of the analysis as a share of that of the capture."""
    seconds = [record.seconds for record in records if ANALYSIS in record.seconds]
    return _median([times[ANALYSIS] / times["trace"] for times in seconds], "{:.1%}")


def _median(values: Sequence[float], text: str) -> str:
    return text.format(median(values)) if values else "-"


def _noise_passed(records: Sequence[Record]) -> int:
    return sum(record.noise == PASSED for record in records)


OUR_COLUMNS: tuple[Column, ...] = (
    ("models", len), ("captured", partial(_passed, "trace")), ("analyzed", partial(_passed, ANALYSIS)),
    ("pruned", _pruned), ("exact", _exact), ("noise accepted", _noise_passed), ("written back", _written_back),
    ("of these with padding", _padded), ("parameters removed", _removed), ("capture time", partial(_seconds, "trace")),
    ("analysis time", _analysis), ("analysis / capture", _share),
)  # fmt: skip
BUDGET_COLUMNS: tuple[Column, ...] = (
    ("models", len), ("exact", _exact), ("noise accepted", _noise_passed), ("written back", _written_back),
    ("of these with padding", _padded), ("parameters removed", _removed),
)  # fmt: skip
PEER_COLUMNS: tuple[Column, ...] = (
    ("models", len), ("pruned", _pruned), ("still runs", partial(_passed, "run")),
    ("same output shapes", partial(_passed, "shapes")), ("exact", _exact), ("parameters removed", _removed),
    ("time", partial(_seconds, "prune")),
)  # fmt: skip
