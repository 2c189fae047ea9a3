"""Frontier of a model: sizes, speeds and qualities at some shares, as a table, JSON and a page with pictures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from graphprune.display import html
from graphprune.display.scatter import Plot, Point, ahead, plot
from graphprune.statistics.paired import Estimate

NAMES = ("frontier.json", "frontier.md", "frontier.html")
COUNTS = ("parameters", "macs", "kv")
LOSSES = {"perplexity": 1.0, "accuracy": -1.0, "metric": 1.0}  # the sign of those drawn; of an accuracy, the rest to 1
FLOOR = 1e-4  # of drawn losses, which have a logarithmic axis


@dataclass(frozen=True)
class FrontierPoint:
    """Measurements of the model with a share removed, by name; those of the dense model have the share 0."""

    share: float
    values: Mapping[str, Estimate]


@dataclass(frozen=True)
class Frontier:
    """Points in the order of their shares, the dense model first."""

    points: Sequence[FrontierPoint]

    @property
    def columns(self) -> list[str]:
        """Names of the measurements."""
        return list(self.points[0].values)

    def save(self, folder: Path, title: str) -> None:
        """Write the table, the JSON and the page into a folder."""
        for name, text in zip(NAMES, (self._json(), self._table(title), self._page(title)), strict=True):
            (folder / name).write_text(text, encoding="utf-8")

    def _json(self) -> str:
        rows = [{"share": p.share, **{n: vars(value) for n, value in p.values.items()}} for p in self.points]
        return json.dumps({"points": rows}, indent=1) + "\n"

    def _table(self, title: str) -> str:
        heads = ["removed", *self.columns]
        lines = [heads, ["---"] * len(heads), *self._rows()]
        return "\n".join([f"# {title}: frontier", "", *(f"| {' | '.join(line)} |" for line in lines), ""])

    def _rows(self) -> list[list[str]]:
        return [
            [f"{point.share:.1%}".replace("%", " %"), *(_cell(name, point.values[name]) for name in self.columns)]
            for point in self.points
        ]

    def _page(self, title: str) -> str:
        shown = {"columns": ["removed", *self.columns], "rows": self._rows(), "plots": self._plots()}
        return html.page("frontier.html", f"{title}: frontier", **shown)

    def _plots(self) -> dict[str, Plot]:
        return {self._axis(name): self._plot(name) for name in self.columns if name in LOSSES}

    def _axis(self, name: str) -> str:
        return f"1 - {name}" if LOSSES[name] < 0 else name

    def _plot(self, name: str) -> Plot:
        drawn = []
        for point in self.points:
            value = point.values[name].value
            loss = 1 - value if LOSSES[name] < 0 else value
            label = f"{point.share:.0%}" if point.share else "dense"
            size = point.values["parameters"].value
            drawn.append(Point(label, size, max(loss, FLOOR), dense=not point.share))
        first = ahead(drawn)
        return plot([Point(p.name, p.size, p.loss, a, p.dense) for p, a in zip(drawn, first, strict=True)])


def _cell(name: str, value: Estimate) -> str:
    """Value as text: counts with separators, bytes in MB, times in ms, others with their interval."""
    if name in COUNTS:
        return f"{value.value:,.0f}"
    if name.startswith("size"):
        return f"{value.value / 1e6:,.3f} MB"
    factor, unit = (1e3, " ms") if name.startswith("latency") else (1.0, "")
    ends = f" ({value.low * factor:.4g} to {value.high * factor:.4g})" if value.low < value.high else ""
    return f"{value.value * factor:.4g}{unit}{ends}"
