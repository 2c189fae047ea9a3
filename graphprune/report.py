"""What is told about a pruned model: `report.json` for machines, `README.md` for people."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from graphprune.errors import LoadError

FILE = "report.json"


@dataclass(frozen=True)
class Calibration:
    """The text that a method looked at, and how much of it."""

    source: str
    samples: int
    length: int  # tokens a sample
    sha256: str = ""
    autocast: bool = False  # matrices were multiplied in bfloat16


@dataclass(frozen=True)
class Report:
    """How a pruned model came about and what was proved of it.

    `seconds` are wall time by pass, `errors` the largest relative differences by what was compared with what,
    `widths` the size before and after by group, `peak_memory` is in bytes.
    """

    model: str
    recipe: str
    destination: str
    parameters_before: int
    parameters_after: int
    sparsity_asked: float | None  # None: a given plan was applied
    plan: str  # fingerprint of the plan
    program: str  # fingerprint of the model that the plan is made for
    seed: int = 0
    calibration: Calibration | None = None
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory: int = 0
    errors: Mapping[str, float] = field(default_factory=dict)
    tolerance: float = 1e-4
    loads_with: tuple[str, ...] = ()
    command: str = ""
    version: str = ""
    base_model: str | None = None  # its name on the Hugging Face hub, where it is known
    licence: str | None = None
    notes: tuple[str, ...] = ()
    cut: bool = True  # False: only a plan was made

    @property
    def sparsity_reached(self) -> float:
        """The share of the parameters that is gone."""
        return 1 - self.parameters_after / self.parameters_before if self.parameters_before else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        table = plain(self)
        assert isinstance(table, dict)
        return {**table, "sparsity_reached": self.sparsity_reached}

    def save(self, folder: Path) -> None:
        """Write `report.json` and the model card into a folder."""
        (folder / FILE).write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card(self), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Report":
        """Read what `save` wrote.

        Raises:
            LoadError: if there is no readable report in the folder.
        """
        path = folder / FILE
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            known = {f.name: table[f.name] for f in fields(cls) if f.name in table}
            given = known.get("calibration")
            return cls(**{**known, "calibration": Calibration(**given) if given else None})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as fault:
            raise LoadError(f"{path}: not a report of graphprune ({fault})") from fault


def plain(thing: object) -> Any:
    """`thing` in the values that JSON has; what is not a number there becomes None."""
    if is_dataclass(thing) and not isinstance(thing, type):
        return plain(asdict(thing))
    if isinstance(thing, Mapping):
        return {str(key): plain(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple | set | frozenset):
        return [plain(item) for item in thing]
    if isinstance(thing, float) and not math.isfinite(thing):
        return None
    return thing if thing is None or isinstance(thing, bool | int | float | str) else str(thing)


def card(report: Report) -> str:
    """The model card of a pruned model: what it is, what loads it, how it was made and checked."""
    parts = (_front(report), _about(report), _loading(report), _making(report), _proof(report), _widths(report))
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(report: Report) -> str:
    """The YAML that the Hugging Face hub reads; a JSON string is a YAML string."""
    lines = ["---", f"library_name: {'transformers' if report.destination != 'free' else 'graphprune'}"]
    if report.base_model:
        lines += [f"base_model: {json.dumps(report.base_model)}", "base_model_relation: finetune"]
    if report.licence:
        lines.append(f"license: {json.dumps(report.licence)}")
    lines += ["tags:", "- pruned", "- structured-pruning", "- graphprune", "---"]
    return "\n".join(lines)


def _about(report: Report) -> str:
    name = _line(report.base_model or Path(report.model).name)
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


def _loading(report: Report) -> str:
    lines = [f"- {_line(way)}" for way in report.loads_with] or ["- `graphprune.load`"]
    return "\n".join(["## What loads it", "", *lines, *(f"\n{_line(note)}" for note in report.notes)])


def _making(report: Report) -> str:
    asked = "a given plan" if report.sparsity_asked is None else f"{report.sparsity_asked:.2%} of all parameters"
    rows = {
        "Model": f"`{report.model}`",
        "Recipe": report.recipe,
        "Destination": report.destination,
        "Asked for": asked,
        "Reached": f"{report.sparsity_reached:.2%}",
        "Calibration": _calibration(report.calibration),
        "Seed": str(report.seed),
        "Plan": f"`{report.plan}`",
        "Time": _time(report.seconds),
        "Peak memory": f"{report.peak_memory / 2**20:,.0f} MiB" if report.peak_memory else "",
    }
    table = ["| | |", "|---|---|", *(f"| {key} | {_line(value)} |" for key, value in rows.items() if value)]
    again = ["", "Made by:", "", "```", report.command.replace("```", ""), "```"] if report.command else []
    return "\n".join(["## How it was made", "", *table, *again])


def _calibration(given: Calibration | None) -> str:
    if given is None:
        return "none"
    precision = ", matrices multiplied in bfloat16" if given.autocast else ""
    return f"`{given.source}`, {given.samples} samples of {given.length} tokens{precision}"


def _time(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    steps = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    return f"{sum(seconds.values()):.1f} s ({steps})"


def _proof(report: Report) -> str:
    if not report.errors:
        return ""
    rows = [f"| {_line(name)} | {error:.1e} |" for name, error in report.errors.items()]
    head = f"Compared on fresh random inputs; nothing is saved where the difference exceeds {report.tolerance:.0e}."
    table = ["| compared | largest relative difference |", "|---|---|"]
    return "\n".join(["## How it was checked", "", head, "", *table, *rows])


def _widths(report: Report) -> str:
    if not report.widths:
        return ""
    rows = [f"| `{_line(name)}` | {before} | {after} |" for name, (before, after) in report.widths.items()]
    return "\n".join(["## What is narrower", "", "| group | before | after |", "|---|---|---|", *rows])


def _line(text: str) -> str:
    """Text on one line that stays inside its table cell."""
    return " ".join(text.split()).replace("|", r"\|")
