"""Sensitivities: a table of the losses of a model of which one group at a time is cut."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from graphprune.display import html
from graphprune.display.color_scale import ColorScale
from graphprune.display.text_table import text_table
from graphprune.errors import LoadError, PlanError
from graphprune.support import json_fields
from graphprune.support.atomic_output import new_file
from graphprune.support.json_fields import FieldError

FORMAT = 1
LOSSES = {True: "nats a token", False: "squared error relative to the dense outputs"}


@dataclass(frozen=True)
class Trial:
    """The `loss` when a group of `size` indices alone is cut to `width` of them, which removes about the share `ratio`;
    `refitted`: after a refit of the linear layers that read the group."""

    group: str
    size: int
    width: int
    ratio: float
    refitted: bool
    loss: float

    def require(self, path: str) -> None:
        """Refuse values that no measurement has; `path` is the place of the trial in its file.

        Raises:
            FieldError: if the width does not fit the size, or the loss is no number.
        """
        if not 0 <= self.width <= self.size or not self.size:
            raise FieldError(f"{path}: the width is {self.width} of a size {self.size}")
        if not isfinite(self.loss):
            raise FieldError(f"{path}['loss'] is null, expected a number")

    @property
    def removed_share(self) -> float:
        """The share of the indices that is removed."""
        return 1 - self.width / self.size


@dataclass(frozen=True)
class Sensitivities:
    """A fact: the losses of a model of which one group at a time is cut, in `unit`; `dense` is the loss without a cut.

    `program` is the fingerprint of the model, `score` the method that chose the indices, `refit` the method of the
    refitted trials. `inputs` describes the model and the data, `labels` the indices of each group. Groups that no
    linear layer reads have no refitted trials.
    """

    program: str
    dense: float
    unit: str
    score: str
    refit: str
    trials: tuple[Trial, ...]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def groups(self) -> Mapping[str, tuple[Trial, ...]]:
        """The trials of every group, the widest first."""
        by_group: dict[str, list[Trial]] = {}
        for trial in self.trials:
            by_group.setdefault(trial.group, []).append(trial)
        return {name: tuple(sorted(trials, key=lambda t: -t.width)) for name, trials in by_group.items()}

    @property
    def unrefitted(self) -> "Sensitivities":
        """The table without the refitted trials."""
        return replace(self, trials=tuple(trial for trial in self.trials if not trial.refitted))

    def rise(self, group: str, refitted: bool = True) -> list[tuple[float, float]]:
        """The removed shares of a group, ascending from 0, with the rise of the loss at each.

        With `refitted`, the rise after the refit, where the group has one.
        """
        chosen = [trial for trial in self.groups[group] if trial.refitted == refitted]
        chosen = chosen or [trial for trial in self.groups[group] if not trial.refitted]
        return [(0.0, 0.0), *((trial.removed_share, trial.loss - self.dense) for trial in chosen)]

    def require(self, program: str, groups: Iterable[str]) -> None:
        """Refuse another model, and groups that were not measured.

        Raises:
            PlanError: if the fingerprint differs, or a group is missing.
        """
        if program != self.program:
            raise PlanError(
                f"the sensitivities were measured on another model: its fingerprint is {self.program}, the model's is "
                f"{program}; measure this model"
            )
        missing = [name for name in groups if name not in self.groups]
        if missing:
            raise PlanError(
                f"the sensitivities lack {len(missing)} of the groups to cut, such as "
                f"{missing[0]}; measure them with the same recipe, destination and protection as the plan"
            )

    @cached_property
    def ways(self) -> list[tuple[bool, float]]:
        """The ways in which groups were cut: whether refitted, and the share to remove."""
        return sorted({(trial.refitted, trial.ratio) for trial in self.trials})

    @cached_property
    def rises(self) -> Mapping[tuple[str, bool, float], float]:
        """The rise of the loss, by the name of a group and the way in which it was cut."""
        return {(trial.group, trial.refitted, trial.ratio): trial.loss - self.dense for trial in self.trials}

    @cached_property
    def color_scale(self) -> ColorScale:
        """The color scale of the rises of all trials."""
        return ColorScale.of_rises(self.rises.values())

    def __repr__(self) -> str:
        head = f"Sensitivities of {len(self.groups)} groups: {len(self.trials)} trials, dense loss {self.dense:.4f}"
        deepest = sorted(((self.rise(name)[-1], name) for name in self.groups), key=lambda pair: -pair[0][1])
        rows = [
            (self.labels.get(name, ""), name, f"{rise:+.4f}", f"at {share:.0%} cut") for (share, rise), name in deepest
        ]
        return "\n".join([f"{head} {self.unit}", *(f"  {line}" for line in text_table(rows, limit=6))])

    def _repr_html_(self) -> str:
        return html.part("sensitivities.html", table=self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"format": FORMAT, **asdict(self)}

    def save(self, path: str | Path, force: bool = False) -> None:
        """Write the table as JSON.

        Raises:
            ExportError: if there is such a file and `force` is not set.
        """
        with new_file(path, force) as file:
            file.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Sensitivities":
        """Read what `save` wrote.

        Raises:
            LoadError: if the file is missing or is no such table.
        """
        try:
            table = json_fields.read(Path(path))
            if (made := table.entries().get("format")) and made.value != FORMAT:
                raise LoadError(f"{path} is a table of another format than {FORMAT}, which this version reads")
            sensitivities = table.as_dataclass(cls, others=True)
            for trial, at in zip(sensitivities.trials, table.entries()["trials"].items(), strict=True):
                trial.require(at.path)
            return sensitivities
        except (OSError, ValueError) as fault:
            advice = "make one with `graphprune sensitivity`"
            raise json_fields.refused(path, "is no table of sensitivities", fault, advice) from fault
