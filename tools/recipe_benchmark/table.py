"""Records as Markdown, and the frontier of quality and size as a plot."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from tools.dataset_names import dataset, perplexity_title
from tools.recipe_benchmark.record import DENSE, Record

DRAWS = 2000  # of the bootstrap
WORST = 1000.0  # perplexities above are not drawn


def table(records: Sequence[Record]) -> Iterator[str]:
    """One row a run, sorted by sparsity and by the first perplexity."""
    dense = next((record for record in records if record.run.recipe == DENSE), None)
    done = [record for record in records if not record.fault]
    texts = list(dict.fromkeys(text for record in done for text in record.perplexity))
    questions = list(dict.fromkeys(name for record in done for name in record.right))
    titles = [*map(perplexity_title, texts), *(f"{dataset(name)} accuracy (difference to dense)" for name in questions)]
    several = ["calibration samples"] if len({r.run.samples for r in done if r.run.recipe != DENSE}) > 1 else []
    yield _line(["recipe", *several, "parameters removed", *titles, "parameters", "multiply-accumulates per token",
                 "KV cache bytes per token", "pruning time", "peak memory"])  # fmt: skip
    yield _line(["---"] * (7 + len(several) + len(titles)))
    for r in sorted(done, key=lambda r: (r.run.sparsity, next(iter(r.perplexity.values()), 0.0))):
        yield _line([
            r.run.recipe, *(str(r.run.samples) for _ in several), f"{r.removed:.1%}",
            *(f"{r.perplexity[text]:.2f}" if text in r.perplexity else "" for text in texts),
            *(_accuracy(r.right.get(name, []), dense.right.get(name) if dense else None) for name in questions),
            _count(r.parameters), _count(r.macs), f"{r.cache:,}", f"{r.seconds:.0f} s",
            f"{r.memory / 2**20:,.0f} MiB",
        ])  # fmt: skip
    for record in (record for record in records if record.fault):
        yield f"\n`{record.run.recipe}` at {record.run.sparsity:.0%}: {record.fault}"


def _count(number: int) -> str:
    """A number in millions, or in thousands where it is less than one."""
    return f"{number / 1e3:.0f} K" if number < 1e6 else f"{number / 1e6:.1f} M"


def _accuracy(right: Sequence[bool], dense: Sequence[bool] | None) -> str:
    """The share of right answers, and the 95 % bootstrap interval of its difference to that of the dense model; nothing
    where there are no answers."""
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
    """One picture a text: perplexity over the share of parameters removed, one line a recipe."""
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
        axes.set(xlabel="parameters removed", ylabel=perplexity_title(text), yscale="log")
        axes.legend(fontsize="small")
        figure.savefig(folder / f"{Path(text).name}.png", dpi=150, bbox_inches="tight")
        pyplot.close(figure)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
