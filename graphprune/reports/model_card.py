"""Model card of a pruned model: `README.md`, as the Hugging Face hub reads and shows it."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphprune.reports.report import CalibrationReport, Quality, Report

_ABSOLUTE = r"(?:/|~[\\/]|[A-Za-z]:[\\/])"
_QUOTED_PATH = re.compile(rf"""(['"]){_ABSOLUTE}[^'"\n]*?([^'"\\/\n]+)[\\/]?\1""")
_PATH = re.compile(rf"""(?<=[\s'"`=,(]){_ABSOLUTE}(?:[^\s'"`\\/]+[\\/])*([^\s'"`\\/]+)[\\/]?""")


def card(report: "Report") -> str:
    """Model card of a pruned model: description, loading, how it was made and verified."""
    made = (_making(report), _healing(report), _proof(report), _widths(report))
    parts = (_front(report), _about(report), _loading(report), *made)
    return without_folders("\n\n".join(part for part in parts if part) + "\n")


def without_folders(text: str) -> str:
    """Text in which absolute paths, which mean nothing on another machine, are names of files and folders."""
    return _PATH.sub(r"\1", _QUOTED_PATH.sub(r"\1\2\1", text))


def _front(report: "Report") -> str:
    """Front matter that the Hugging Face hub reads."""
    from huggingface_hub import ModelCardData  # here, so that reports load without it

    results = _results(report)
    data = ModelCardData(
        library_name="graphprune" if report.destination == "free" else "transformers",
        base_model=report.base_model or None,
        license=report.licence or None,
        pipeline_tag=report.task or None,
        tags=["pruned", "structured-pruning", "graphprune"],
        base_model_relation="finetune" if report.base_model else None,
        model_name=f"{_line(report.name)}, pruned" if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _results(report: "Report") -> list[Any]:
    """Measured figures of the pruned model, as the hub's model-index lists them; after healing, where it was healed."""
    from huggingface_hub import EvalResult

    kinds = ("perplexity", "accuracy")
    healed = [(Path(text).name, kind, after) for kind in kinds
              for text, (_, after) in report.healing.get(kind, {}).items()]  # fmt: skip
    measured: list[Any] = healed or [(quality.short, "perplexity", quality.after) for quality in report.quality]
    measured += [("test data", name, after) for name, (_, after) in report.metrics.items() if not report.healing]
    task = report.task or "other"
    return [
        EvalResult(task_type=task, dataset_type=data, dataset_name=data, metric_type=kind, metric_value=value)
        for data, kind, value in measured
        if report.cut and value is not None and math.isfinite(value)
    ]


def _about(report: "Report") -> str:
    name = _line(report.name)
    if not report.cut:
        return (
            f"# A plan to prune {name}\n\n"
            f"Applied by `graphprune apply`, it takes {report.sparsity_reached:.2%} of the parameters: "
            f"{report.parameters_before:,} become {report.parameters_after:,}. There are no weights here."
        )
    return (
        f"# {name}, pruned\n\n"
        f"Structured pruning by graphprune {report.version} took {report.sparsity_reached:.2%} of the parameters: "
        f"{report.parameters_before:,} became {report.parameters_after:,}. "
        "The tensors themselves are smaller; no mask and no special kernel is needed."
    )


def _loading(report: "Report") -> str:
    lines = [f"- {_line(way)}" for way in report.loads_with] or ["- `graphprune.load`"]
    return "\n".join(["## What loads it", "", *lines, *(f"\n{_line(note)}" for note in report.notes)])


def _making(report: "Report") -> str:
    rows = facts(report)
    table = ["| | |", "|---|---|", *(f"| {key} | {_line(value)} |" for key, value in rows.items() if value)]
    again = ["", "Made by:", "", "```", report.command.replace("```", ""), "```"] if report.command else []
    return "\n".join(["## How it was made", "", *table, *again])


def _healing(report: "Report") -> str:
    """Section on the training after the cut, if there was any."""
    if not report.healing:
        return ""
    losses = {point["step"]: point["held_out_loss"] for point in report.healing["curve"]}
    before, after = (losses.get(step) for step in (0, report.healing["best"]))
    fell = f" The loss on held-out data fell from {before:.4f} to {after:.4f}." if before and after is not None else ""
    healing = report.healing
    teacher = f" towards `{_line(healing['teacher'])}`" if healing["teacher"] else ""
    table = _measured(healing, "perplexity", ".2f") + _measured(healing, "accuracy", ".2%")
    text = (
        f"Trained{teacher} on {healing['tokens']:,} {healing['unit']} in {healing['steps']:,} steps (weights: "
        f"{healing['train']}, aim: {healing['aim']}).{fell} The figures of other sections are those before."
    )
    again = ["", "```", report.healing["command"].replace("```", ""), "```"] if report.healing["command"] else []
    return "\n".join(["## Healing", "", text, *table, *again])


def _measured(healing: Mapping[str, Any], name: str, form: str) -> list[str]:
    """Table of what was measured before and after a healing; nothing without texts for it."""
    rows = [f"| {_line(t)} | {a:{form}} | {b:{form}} |" for t, (a, b) in healing.get(name, {}).items()]
    return ["", f"| {name} on | before | after |", "|---|---|---|", *rows] if rows else []


def _calibration(data: "CalibrationReport | None") -> str:
    if data is None:
        return "none"
    precision = ", matrices multiplied in bfloat16" if data.autocast else ""
    size = f"{data.samples} samples of {data.length} tokens" if data.length else f"{data.samples} batches"
    return f"`{data.source}`, {size}{precision}"


def _time(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    steps = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    return f"{sum(seconds.values()):.1f} s ({steps})"


def _anonymous(report: "Report") -> str:
    estimate = f" ({report.estimated_memory / 2**20:,.0f} MiB estimated)" if report.estimated_memory else ""
    return f"{report.anonymous_memory / 2**20:,.0f} MiB{estimate}" if report.anonymous_memory else ""


def _proof(report: "Report") -> str:
    if not report.errors:
        return ""
    rows = [f"| {_line(name)} | {error:.1e} |" for name, error in report.errors.items()]
    head = f"Compared on fresh random inputs; nothing is saved where the difference exceeds {report.tolerance:.0e}."
    table = ["| compared | largest relative difference |", "|---|---|"]
    return "\n".join(["## How it was checked", "", head, "", *table, *rows])


def _widths(report: "Report") -> str:
    if not report.widths:
        return ""
    what = {name: f" {label} |" for name, label in report.labels.items()}
    rows = [f"| `{_line(n)}` |{what.get(n, '')} {before} | {after} |" for n, (before, after) in report.widths.items()]
    head = "| group | indices | before | after |" if what else "| group | before | after |"
    return "\n".join(["## What is narrower", "", head, "|---" * (3 + bool(what)) + "|", *rows])


def _line(text: str) -> str:
    """Text on one line, with escaped bars for a table cell."""
    return " ".join(text.split()).replace("|", r"\|")


def facts(report: "Report") -> dict[str, str]:
    """Rows of the table of how a model was made."""
    return {
        "Model": f"`{report.model}`" + (f", commit {report.revision}" if report.revision else ""),
        "Recipe": report.recipe,
        "Destination": report.destination,
        "Target": report.request,
        "Removed": report.removed,
        report.budget_name.capitalize(): report.amount,
        "Calibration": _calibration(report.calibration),
        "Perplexity": "; ".join(map(perplexity_text, report.quality)),
        "Metric": "; ".join(report.metric_texts),
        "Seed": str(report.seed),
        "Plan": f"`{report.plan}`",
        "Time": _time(report.seconds),
        "Peak memory": f"{report.peak_memory / 2**20:,.0f} MiB" if report.peak_memory else "",
        "without mapped files": _anonymous(report),
    }


def perplexity_text(quality: "Quality") -> str:
    """Perplexity before and after, in words."""
    before, after = ("not finite" if value is None else f"{value:.2f}" for value in (quality.before, quality.after))
    return (
        f"{before} before, {after} after, on {quality.windows} windows of {quality.length} tokens of `{quality.text}`"
    )
