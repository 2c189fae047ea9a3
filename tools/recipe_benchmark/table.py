"""Records as Markdown, and the frontier of quality and size as a plot."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from tools.recipe_benchmark.record import DENSE, Record

DRAWS = 2000  # of the bootstrap
WORST = 1000.0  # perplexities above are not drawn


def table(records: Sequence[Record]) -> Iterator[str]:
    """A row a run, sorted by what is gone and by the first perplexity."""
    dense = next((record for record in records if record.run.recipe == DENSE), None)
    done = [record for record in records if not record.fault]
    texts = list(dict.fromkeys(text for record in done for text in record.perplexity))
    asked = list(dict.fromkeys(name for record in done for name in record.right))
    yield _line(["recipe", "gone", *map(_short, texts), *map(_short, asked), "parameters", "MACs", "KV bytes", "time",
                 "memory"])  # fmt: skip
    yield _line(["---"] * (7 + len(texts) + len(asked)))
    for r in sorted(done, key=lambda r: (r.run.sparsity, next(iter(r.perplexity.values()), 0.0))):
        yield _line([
            r.run.recipe, f"{r.removed:.1%}", *(f"{r.perplexity[t]:.2f}" if t in r.perplexity else "" for t in texts),
            *(_accuracy(r.right.get(name, []), dense.right.get(name) if dense else None) for name in asked),
            _count(r.parameters), _count(r.macs), f"{r.cache:,}", f"{r.seconds:.0f} s",
            f"{r.memory / 2**20:,.0f} MiB",
        ])  # fmt: skip
    for record in (record for record in records if record.fault):
        yield f"\n`{record.run.recipe}` at {record.run.sparsity:.0%}: {record.fault}"


def _count(number: int) -> str:
    """A number in millions, or in thousands where it is less than one."""
    return f"{number / 1e3:.0f} K" if number < 1e6 else f"{number / 1e6:.1f} M"


def _accuracy(right: Sequence[bool], dense: Sequence[bool] | None) -> str:
    """The share of right answers, and where 95 % of the bootstrapped differences from the dense model lie; nothing if
    nothing was asked."""
    if not right:
        return ""
    text = f"{sum(right) / len(right):.1%}"
    if dense is None or list(right) == list(dense):
        return text
    low, high = interval(right, dense)
    return f"{text} ({low:+.1%} to {high:+.1%})"


def interval(right: Sequence[bool], dense: Sequence[bool]) -> tuple[float, float]:
    """The paired bootstrap interval (95 %) of the difference of two shares."""
    difference = torch.tensor(right, dtype=torch.float64) - torch.tensor(dense, dtype=torch.float64)
    drawn = torch.randint(len(difference), (DRAWS, len(difference)), generator=torch.Generator().manual_seed(0))
    low, high = difference[drawn].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def plot(records: Sequence[Record], folder: Path) -> None:
    """One picture a text: perplexity over the share of the parameters that is gone, a line a recipe."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    done = [record for record in records if not record.fault]
    dense = [record for record in done if record.run.recipe == DENSE]
    folder.mkdir(parents=True, exist_ok=True)
    for text in dict.fromkeys(text for record in done for text in record.perplexity):
        figure, axes = pyplot.subplots(figsize=(8, 5))
        for recipe in dict.fromkeys(record.run.recipe for record in done if record.run.recipe != DENSE):
            own = sorted([*dense, *(r for r in done if r.run.recipe == recipe)], key=lambda r: r.removed)
            points = [(r.removed, r.perplexity[text]) for r in own if r.perplexity[text] < WORST]
            axes.plot(*zip(*points, strict=True), marker="o", label=recipe)
        axes.set(xlabel="parameters removed", ylabel=f"perplexity, {_short(text)}", yscale="log")
        axes.legend(fontsize="small")
        figure.savefig(folder / f"{_short(text)}.png", dpi=150, bbox_inches="tight")
        pyplot.close(figure)


def _short(path: str) -> str:
    return Path(path).name


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
