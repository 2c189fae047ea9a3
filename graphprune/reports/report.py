"""Report of a pruned model: `report.json` for machines, `README.md` and `report.html` for people."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from graphprune.display import html
from graphprune.reports.grouping import by_kind, by_layer, strips, together
from graphprune.reports.model_card import card, facts, perplexity_text
from graphprune.support import json_fields
from graphprune.support.json_fields import FieldError

FILE = "report.json"
PAGE = "report.html"
BUDGETS = {
    "parameters": "parameters",
    "macs": "multiply-accumulates",
    "kv_cache": "bytes of KV cache a token",
    "latency": "latency",
}
WEIGHTS = (".safetensors", ".pt2", ".onnx", ".data")  # suffixes of files that hold weights


@dataclass(frozen=True)
class CalibrationReport:
    """Calibration text of a run, and the size of its samples."""

    source: str
    samples: int
    length: int  # tokens a sample
    sha256: str = ""
    autocast: bool = False  # matrices are multiplied in bfloat16


@dataclass(frozen=True)
class Quality:
    """Perplexity on the first windows of a text before and after; None where it is not finite."""

    text: str
    windows: int
    length: int  # tokens a window
    before: float | None
    after: float | None

    @property
    def short(self) -> str:
        """Name of the text without its folders."""
        return Path(self.text).name


@dataclass(frozen=True)
class Report:
    """Record of how a model was pruned and verified.

    `seconds` are wall time by pass; `memory` is the peak of each pass and `anonymous_memory` that of the whole run, in
    bytes without memory-mapped files, which the system can drop; `estimated_memory` is its estimate before the run.
    `peak_memory` includes mapped files. `errors` are the largest relative differences by comparison. `widths` are the
    sizes before and after by group, `labels` the kinds of indices by group, `counts` the elements before and after by
    parameter, and `scores` the deciles of the scores in a group, eleven numbers in ascending order. `sha256` has the
    checksum of every file of weights (see `digests`). `sparsity_asked` is the requested share of the `budget`; if that
    is not parameters, `amounts` are its values before and after (a latency in milliseconds). `rounding` describes the
    steps in which a reduction can be made. `constants` counts further parameters of the model, which the captured call
    does not use: shares are of all. `metrics` are means of a user's metric before and after, by name.
    """

    model: str
    recipe: str
    destination: str
    parameters_before: int
    parameters_after: int
    sparsity_asked: float | None  # None: a saved plan was applied
    plan: str  # fingerprint of the plan
    program: str  # fingerprint of the model that the plan is made for
    seed: int = 0
    calibration: CalibrationReport | None = None
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory: int = 0
    anonymous_memory: int = 0
    estimated_memory: int = 0
    errors: Mapping[str, float] = field(default_factory=dict)
    tolerance: float = 1e-4
    loads_with: tuple[str, ...] = ()
    command: str = ""
    version: str = ""
    base_model: str | None = None  # its name on the Hugging Face hub, where it is known
    revision: str | None = None  # its commit there
    licence: str | None = None
    task: str = ""  # as the hub names it
    notes: tuple[str, ...] = ()
    cut: bool = True  # False: the report of a plan alone
    quality: tuple[Quality, ...] = ()
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)  # of `graphprune.prune`; none where a plan was applied
    labels: Mapping[str, str] = field(default_factory=dict)
    budget: str = "parameters"
    amounts: tuple[float, float] | None = None
    rounding: str = ""
    constants: int = 0
    healing: Mapping[str, Any] = field(default_factory=dict)  # the record of `graphprune.heal`; none before
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    goals: tuple[Mapping[str, Any], ...] = ()  # requested bounds of quantities, with measured values and intervals

    @property
    def request(self) -> str:
        """Requested reduction, in words."""
        if self.sparsity_asked is not None:
            goals = "".join(f"{goal['goal']}, by " for goal in self.goals)
            return f"{goals}{self.sparsity_asked:.2%} of all {BUDGETS[self.budget]}"
        ratio = self.options.get("ratio")
        return "a saved plan" if ratio is None else f"{ratio:.2%} of every group"

    @property
    def sparsity_reached(self) -> float:
        """Share of the parameters that was removed."""
        whole = self.parameters_before + self.constants
        return (self.parameters_before - self.parameters_after) / whole if whole else 0.0

    @property
    def budget_reached(self) -> float:
        """Share of the budget that was removed."""
        if not self.amounts:
            return self.sparsity_reached
        before, after = self.amounts
        return 1 - after / before if before else 0.0

    @property
    def removed(self) -> str:
        """Reduction of the budget, its target, and the reason for their difference."""
        reached, goal = self.budget_reached, self.sparsity_asked
        differ = goal is not None and abs(reached - goal) >= 5e-4
        known = [f"target {100 * goal:.4g} %"] if goal is not None else []
        aside = "; ".join(known + ([self.rounding] if differ and self.rounding else []))
        more = f", {_percent(self.sparsity_reached)} of the parameters" if self.amounts else ""
        more += f"; {self.constants:,} more that the captured call does not use count as constants" * bool(
            self.constants
        )
        return f"{_percent(reached)} of the {BUDGETS[self.budget]}{f' ({aside})' if aside else ''}{more}"

    @property
    def budget_name(self) -> str:
        """Name of the budget, in words."""
        return BUDGETS[self.budget]

    @property
    def amount(self) -> str:
        """Amounts of the budget before and after, if it is not parameters, with the speed-up of a latency."""
        if not self.amounts:
            return ""
        before, after = self.amounts
        if self.budget != "latency":
            return f"{before:,.0f} -> {after:,.0f}"
        return f"{before:.4g} ms -> {after:.4g} ms, {before / after:.2f}x as fast (estimated from measured parts)"

    def __repr__(self) -> str:
        made = "" if self.cut else ", a plan"
        lines = [f"Report of {self.recipe} on {self.model} for destination {self.destination}{made}"]
        lines.append(f"  removed {self.removed}: {self.parameters_before:,} -> {self.parameters_after:,} parameters")
        lines += [f"  {BUDGETS[self.budget]}: {self.amount}"] if self.amount else []
        lines += [f"  {perplexity_text(quality)}" for quality in self.quality[:3]]
        lines += [f"  {metric}" for metric in self.metric_texts]
        lines += [f"  largest relative difference: {max(self.errors.values()):.1e}"] if self.errors else []
        return "\n".join(lines)

    @property
    def metric_texts(self) -> list[str]:
        """Metrics before and after, and the goals with what was measured, in words."""
        texts = [f"{name}: {before:.4g} before, {after:.4g} after" for name, (before, after) in self.metrics.items()]
        return [*texts, *(str(goal["text"]) for goal in self.goals)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        table = plain(self)
        assert isinstance(table, dict)
        return {**table, "sparsity_reached": self.sparsity_reached, "budget_reached": self.budget_reached}

    def save(self, folder: Path) -> None:
        """Write `report.json`, the model card and a page into a folder."""
        (folder / PAGE).write_text(html.page("report.html", f"{self.name}: report", **_shown(self)), encoding="utf-8")
        (folder / FILE).write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card(self), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Report":
        """Read the report that `save` wrote.

        Raises:
            LoadError: if there is no readable report in the folder.
        """
        path = folder / FILE
        try:
            report = json_fields.read(path).as_dataclass(cls, others=True)
            report._require()
            return report
        except (OSError, ValueError) as fault:
            raise json_fields.refused(path, "is not a report of graphprune", fault, "prune the model again") from fault

    def _require(self) -> None:
        """Refuse values that the pages cannot show."""
        if self.budget not in BUDGETS:
            raise FieldError(f"budget is {self.budget!r}, expected {', '.join(BUDGETS)}")
        if not isinstance(self.options.get("ratio"), int | float | None):
            raise FieldError("options['ratio'] is no number")

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.base_model or Path(self.model).name

    def _repr_html_(self) -> str:
        return html.part("report.html", **_shown(self))


def _shown(report: Report) -> dict[str, Any]:
    """Values for the template of the page."""
    charted = ("Time", "Peak memory", "Perplexity")
    rows = {key: value.replace("`", "") for key, value in facts(report).items() if key not in charted}
    return {
        "report": report,
        "name": report.name,
        "layers": together(by_layer(report.counts)),
        "kinds": by_kind(report.counts),
        "strips": strips(report.widths),
        "slowest": max(report.seconds, key=lambda name: report.seconds[name], default=""),
        "longest": max(report.seconds.values(), default=0) or 1,
        "highest": max(report.memory.values(), default=0) or 1,
        "facts": {**rows, "Loads with": "; ".join(way.replace("`", "") for way in report.loads_with)},
    }


def digests(folder: Path) -> dict[str, str]:
    """Checksums (sha256) of the files of weights in a folder, by relative path."""
    checksums = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix in WEIGHTS):
        with path.open("rb") as file:
            checksums[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return checksums


def plain(thing: object) -> Any:
    """Convert a value to types of JSON; numbers that are not finite become None."""
    if is_dataclass(thing) and not isinstance(thing, type):
        return plain(asdict(thing))
    if isinstance(thing, Mapping):
        return {str(key): plain(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple | set | frozenset):
        return [plain(item) for item in thing]
    if isinstance(thing, float) and not math.isfinite(thing):
        return None
    return thing if thing is None or isinstance(thing, bool | int | float | str) else str(thing)


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")
