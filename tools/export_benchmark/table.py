"""What was measured, as a table in Markdown."""

import statistics
from collections.abc import Iterator, Sequence

from tools.dataset_names import perplexity_title
from tools.export_benchmark.measure import Measured


def table(measured: Sequence[Measured]) -> Iterator[str]:
    """One row a folder: tokens or items per second, and the median time of one with the 90th percentile."""
    kinds = list(measured[0].seconds)
    texts = list(measured[0].perplexity)
    labelled = measured[0].right is not None
    heads = ["model", "size, MB", "parameters", "multiply-accumulates"]
    heads += [f"{kind}: rate, median time (90th percentile)" for kind in kinds]
    heads += [f"time saved / multiply-accumulates saved, {kind}" for kind in kinds]
    heads += ["peak memory, MB", *map(perplexity_title, texts)]
    heads += ["accuracy", "largest relative error"] if labelled else ["largest relative error"]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for one in measured:
        cells = [
            one.folder,
            f"{one.bytes / 1e6:.1f}",
            f"{one.parameters:,}",
            f"{one.products:,}" if one.products else "",
        ]
        cells += [_time(one.seconds[kind]) for kind in kinds]
        cells += [f"{one.realised[kind]:.0%}" if kind in one.realised else "" for kind in kinds]
        cells += [f"{one.memory / 1e6:.0f}", *(_number(one.perplexity[text]) for text in texts)]
        cells += [f"{one.right:.2%}"] if one.right is not None else []
        cells.append("" if one.worst is None else f"{one.worst:.1e}")
        yield f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _time(seconds: Sequence[float]) -> str:
    median = statistics.median(seconds)
    return f"{1 / median:.0f}/s: {1000 * median:.2f} ms ({1000 * _percentile(seconds):.2f})"


def _percentile(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=10)[-1] if len(seconds) > 1 else seconds[0]
