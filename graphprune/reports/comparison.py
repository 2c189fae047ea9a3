"""Comparison of runs: sizes, quality, time and memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from graphprune.display import html
from graphprune.display.scatter import Plot, Point, ahead, plot
from graphprune.display.text_table import text_table
from graphprune.errors import LoadError
from graphprune.reports.grouping import Strip, by_layer
from graphprune.reports.report import Quality, Report
from graphprune.support.atomic_output import new_file


@dataclass(frozen=True)
class ComparedRun:
    """Folder that `prune` or `apply` wrote; `name` is the shortest name that is unique among the runs."""

    name: str
    folder: Path
    report: Report

    @property
    def strip(self) -> Strip:
        """Share of parameters that each layer retains."""
        bars = [bar for bar in by_layer(self.report.counts) if bar.before]
        return Strip(self.name, [replace(bar, of=bar.before) for bar in bars])

    def quality(self, text: str) -> Quality | None:
        """Quality on a text (see `Comparison.texts`), if it was measured."""
        return next((quality for quality in self.report.quality if _exam(quality) == text), None)


@dataclass(frozen=True)
class Comparison:
    """Compared runs, in the order of their folders."""

    runs: tuple[ComparedRun, ...]

    @classmethod
    def of(cls, folders: Sequence[str | Path]) -> "Comparison":
        """Read the runs in some folders.

        Raises:
            LoadError: if a folder holds no report, or there are fewer than two.
        """
        paths = [Path(folder) for folder in folders]
        if len(paths) < 2:
            raise LoadError(f"got {len(paths)} folder to compare, expected at least two that graphprune prune wrote")
        return cls(
            tuple(ComparedRun(name, path, Report.load(path)) for name, path in zip(_names(paths), paths, strict=True))
        )

    def __repr__(self) -> str:
        rows = [
            (
                run.name,
                run.report.recipe,
                f"{run.report.sparsity_reached:.1%} removed",
                *map(_after, run.report.quality),
            )
            for run in self.runs
        ]
        width = max(map(len, rows), default=0)
        table = text_table([(*row, *[""] * (width - len(row))) for row in rows])
        return "\n".join([f"Comparison of {len(self.runs)} runs", *(f"  {line}" for line in table)])

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Evaluation texts with number and length of windows; only equal ones can be compared."""
        return tuple(dict.fromkeys(_exam(quality) for run in self.runs for quality in run.report.quality))

    @property
    def one_model(self) -> bool:
        """Whether all runs start from models with the same parameters."""
        return len({run.report.program for run in self.runs}) == 1

    def points(self, text: str) -> list[Point]:
        """Points of the runs that were measured on a text, and of the models that they started from."""
        pairs = [(run, quality) for run in self.runs if (quality := run.quality(text)) is not None]
        dense = {(float(run.report.parameters_before), q.before) for run, q in pairs if q.before is not None}
        points = [Point("before", size, loss, dense=True) for size, loss in sorted(dense)]
        sizes = [(run.name, float(run.report.parameters_after), q.after) for run, q in pairs]
        points += [Point(name, size, loss) for name, size, loss in sizes if loss is not None]
        return [replace(point, ahead=first) for point, first in zip(points, ahead(points), strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        front = {text: {p.name for p in self.points(text) if p.ahead and not p.dense} for text in self.texts}
        return {"one_model": self.one_model, "texts": self.texts, "runs": [self._row(run, front) for run in self.runs]}

    def _row(self, run: ComparedRun, front: dict[str, set[str]]) -> dict[str, Any]:
        report = run.report
        quality = {text: measured for text in self.texts if (measured := run.quality(text)) is not None}
        return {
            "name": run.name,
            "folder": str(run.folder),
            "model": report.model,
            "recipe": report.recipe,
            "destination": report.destination,
            "parameters_before": report.parameters_before,
            "parameters_after": report.parameters_after,
            "sparsity_reached": report.sparsity_reached,
            "perplexity": {text: {"before": q.before, "after": q.after} for text, q in quality.items()},
            "frontier": {text: run.name in front[text] for text in quality},
            "seconds": sum(report.seconds.values()),
            "peak_memory": report.peak_memory,
            "largest_difference": max(report.errors.values(), default=None),
            "command": report.command,
        }

    def save(self, path: str | Path, force: bool = False) -> None:
        """Write the page.

        Raises:
            ExportError: if the file exists and `force` is not set.
        """
        with new_file(path, force) as file:
            title = f"{len(self.runs)} runs of graphprune"
            file.write_text(html.page("compare.html", title, **self._shown()), encoding="utf-8")

    def _shown(self) -> dict[str, Any]:
        plots: dict[str, Plot] = {text: plot(points) for text in self.texts if (points := self.points(text))}
        strips = [run.strip for run in self.runs if run.report.counts]
        return {"table": self.to_dict(), "plots": plots, "strips": strips}

    def _repr_html_(self) -> str:
        return html.part("compare.html", **self._shown())


def _after(quality: Quality) -> str:
    return f"{quality.after:.4g} on {quality.short}" if quality.after is not None else f"not finite on {quality.short}"


def _exam(quality: Quality) -> str:
    return f"{quality.text}, {quality.windows} x {quality.length}"


def _names(paths: Sequence[Path]) -> list[str]:
    """Last parts of paths, as many as make them unique; equal paths have equal names."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names
