"""Records as Markdown."""

from collections.abc import Iterator, Sequence
from statistics import mean

from tools.peer_benchmark.record import DENSE, WAYS, Record


def lines_of(records: Sequence[Record]) -> Iterator[str]:
    """One row for each way and method, one column for each network and share."""
    dense = {record.run.network: record.accuracy for record in records if record.run.way == DENSE}
    done = [record for record in records if record.run.way != DENSE]
    columns = sorted({(record.run.network, record.run.share) for record in done})
    titles = [f"{network} ({dense.get(network, 0):.1%}), -{share:.0%}" for network, share in columns]
    yield f"| way | method | {' | '.join(titles)} |"
    yield "|---" * (2 + len(columns)) + "|"
    for way in WAYS:
        methods = dict.fromkeys(record.run.method for record in done if record.run.way == way)
        cells = {
            method: [_of(done, way, method, *column) for column in columns] for method in methods
        }  # a cell is the records of its seeds
        best = [max((_value(row[i]) for row in cells.values()), default=-1.0) for i in range(len(columns))]
        for method, row in cells.items():
            yield f"| {way} | {method} | {' | '.join(map(_cell, row, best))} |"


def _of(records: Sequence[Record], way: str, method: str, network: str, share: float) -> list[Record]:
    key = way, method, network, share
    return [r for r in records if (r.run.way, r.run.method, r.run.network, r.run.share) == key]


def _value(records: Sequence[Record]) -> float:
    values = [record.accuracy for record in records if not record.fault]
    return mean(values) if values else -1.0


def _cell(records: Sequence[Record], best: float) -> str:
    """Mean accuracy of the seeds in %, and its range if there are several; bold if it is the best one."""
    if not records:
        return ""
    values = [100 * record.accuracy for record in records if not record.fault]
    if not values:
        return records[0].fault
    text = f"{100 * _value(records):.1f}"
    text = f"**{text}**" if _value(records) >= best else text
    return f"{text} ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else text
