"""What was measured, as a table in Markdown."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.export_benchmark.measure import Measured


def table(found: Sequence[Measured]) -> Iterator[str]:
    """One row a folder: how many tokens or items a second, and the median time of one with the 90th percentile."""
    kinds = list(found[0].seconds)
    texts = list(found[0].perplexity)
    labelled = found[0].right is not None
    heads = ["folder", "MB", "parameters", "products", *kinds, *(f"realised, {kind}" for kind in kinds), "peak MB"]
    heads += [f"perplexity, {Path(text).name.split('.')[0]}" for text in texts]
    heads += ["accuracy", "error"] if labelled else ["error"]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for one in found:
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
