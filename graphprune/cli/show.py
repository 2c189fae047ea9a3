"""Print results as tables on standard output."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from graphprune.axes.groups import kind_of
from graphprune.cli.tables import facts, format_value, rows, text
from graphprune.exporters.contract import ExportReport
from graphprune.healing.healing_record import Healing
from graphprune.planning.sensitivity_table import Sensitivities
from graphprune.reports.comparison import Comparison
from graphprune.reports.report import BUDGETS, Report
from graphprune.workflows.trimming.trim_record import Trimming


def report(title: str, made: Report) -> None:
    """Print the summary of a run; report.json has the details."""
    alike = Counter((made.labels.get(n, ""), kind_of(n), before, after) for n, (before, after) in made.widths.items())
    seconds = sum(made.seconds.values())
    slowest = max(made.seconds, key=lambda name: made.seconds[name], default="")
    table = {
        "parameters": f"{made.parameters_before:,} -> {made.parameters_after:,}",
        "removed": made.removed,
        **({BUDGETS[made.budget]: made.amount} if made.amount else {}),
        "widths": [
            f"{f'{label}, ' if label else ''}{kind}: {before} -> {after}, {n} times"
            for (label, kind, before, after), n in alike.items()
        ],
        "perplexity": [f"{_loss(q.before)} -> {_loss(q.after)} on {q.text}" for q in made.quality],
        "metric": made.metric_texts,
        "time": f"{seconds:.1f} s, most of it {slowest}" if slowest else "",
        "peak memory": f"{made.peak_memory / 2**20:,.0f} MiB" if made.peak_memory else "",
        "largest differences": [f"{name}: {error:.1e}" for name, error in made.errors.items()],
        "notes": made.notes,
        "plan": made.plan,
        "loads with": made.loads_with,
    }
    facts(title, table)


def healing(title: str, made: Healing) -> None:
    """Print the summary of a healing; report.json has its curve."""
    before, after = ("-" if loss is None else f"{loss:.4f}" for loss in made.held_out)
    table = {
        "trained": f"{made.trained:,} numbers ({made.train}), {made.tokens:,} {made.unit} in {made.steps:,} steps",
        "held-out loss": f"{before} -> {after}, of aim {made.aim}",
        "perplexity": [f"{_loss(old)} -> {_loss(new)} on {text}" for text, (old, new) in made.perplexity.items()],
        "accuracy": [f"{old:.2%} -> {new:.2%} on {text}" for text, (old, new) in made.accuracy.items()],
        "time": f"{made.seconds:.1f} s, {made.tokens_per_second:,.0f} {made.unit} a second",
        "largest differences": [f"{name}: {error:.1e}" for name, error in made.errors.items()],
        "notes": made.notes,
    }
    facts(title, table)


def trimming(title: str, made: Trimming) -> None:
    """Print the summary of a trim."""
    sizes = {name: getattr(made, name) for name in ("tokens", "parameters", "bytes")}
    table = {
        **{name: f"{before:,} -> {after:,} ({after / before - 1:+.1%})" for name, (before, after) in sizes.items()},
        "coverage": f"{made.coverage:.4%} of the tokens of the corpus remain whole",
        "texts": made.costs(),
        "largest difference": f"{made.error:.1e}, of the outputs for retained tokens",
        "time": f"{made.seconds:.1f} s",
        "notes": made.notes,
    }
    facts(title, table)


def export(title: str, made: ExportReport) -> None:
    """Print the summary of an export; its report file has the details."""
    table = {name: value for name, value in made.facts.items() if isinstance(value, str | int | float)}
    worst = [f"{name}: {check['worst']:.1e}" for name, check in made.facts.get("parity", {}).items()]
    facts(title, {**table, "largest relative difference": worst, "files": made.files})


def sensitivities(title: str, measured: Sensitivities) -> None:
    """Print the rise of the loss of every group, most sensitive first, with a column for each ratio."""
    ratios = sorted({trial.ratio for trial in measured.trials})
    cells = {
        (trial.group, trial.ratio, trial.refitted): f"{trial.loss - measured.dense:+.4f}" for trial in measured.trials
    }
    again = any(trial.refitted for trial in measured.trials)
    order = sorted(measured.groups, key=lambda name: -max(trial.loss for trial in measured.groups[name]))
    table = [
        [measured.labels.get(name, ""), name, measured.groups[name][0].size]
        + ["\n".join(cells.get((name, ratio, way), "-") for way in (False, True)[: 1 + again]) for ratio in ratios]
        for name in order
    ]
    rows(f"{title}: rise of the loss from {measured.dense:.4f} {measured.unit}{'; below, refitted' if again else ''}",
         ["indices", "group", "size", *(f"{ratio:.0%} removed" for ratio in ratios)], table)  # fmt: skip


def comparison(compared: Comparison) -> None:
    """Print a row for each run, with an asterisk where no other run is as small and as good."""
    table = compared.to_dict()
    texts = table["texts"]
    rows(
        f"{len(compared.runs)} runs" + ("" if table["one_model"] else ", which start from different models"),
        [
            "run",
            "recipe",
            "removed",
            "parameters",
            *(f"on text {i + 1}" for i in range(len(texts))),
            "time",
            "memory",
        ],
        [
            [run["name"], run["recipe"], f"{run['sparsity_reached']:.1%}", run["parameters_after"]]
            + [_measured(run, text) for text in texts]
            + [f"{run['seconds']:,.1f} s", f"{run['peak_memory'] / 2**20:,.0f} MiB"]
            for run in table["runs"]
        ],
    )
    for i, name in enumerate(texts):
        text(f"on text {i + 1}: perplexity on {name} tokens; * no other run is as small and as good")


def _measured(run: Mapping[str, Any], text: str) -> str:
    if text not in run["perplexity"]:
        return "-"
    return _loss(run["perplexity"][text]["after"]) + (" *" if run["frontier"][text] else "")


def _loss(perplexity: float | None) -> str:
    return "not finite" if perplexity is None else format_value(perplexity)
