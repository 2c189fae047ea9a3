"""How much worse a model gets when one group alone is cut: what was measured, as a table that can be kept."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from graphprune.display import html
from graphprune.display.color_scale import ColorScale
from graphprune.display.text_table import text_table
from graphprune.errors import LoadError, PlanError, misread
from graphprune.support.atomic_output import new_file

FORMAT = 1
LOSSES = {True: "nats a token", False: "squared error relative to the dense outputs"}


@dataclass(frozen=True)
class Trial:
    """The `loss` when a group of `size` indices keeps `width` of them and everything else stays, about the share
    `ratio` being gone; `refitted`: after the maps that read the group were refitted."""

    group: str
    size: int
    width: int
    ratio: float
    refitted: bool
    loss: float

    @property
    def gone(self) -> float:
        """The share of the indices that is gone."""
        return 1 - self.width / self.size


@dataclass(frozen=True)
class Sensitivities:
    """A fact: the losses of a model of which one group at a time is cut, in `unit`; `dense` is that of the model.

    `program` is the fingerprint of the model, `score` what chose the indices, `refit` what the refitted trials were
    refitted by. `inputs` says what all of it was measured on, `labels` what the indices of each group are.
    Groups that no linear map reads have no refitted trials.
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
        found: dict[str, list[Trial]] = {}
        for trial in self.trials:
            found.setdefault(trial.group, []).append(trial)
        return {name: tuple(sorted(trials, key=lambda t: -t.width)) for name, trials in found.items()}

    @property
    def unrefitted(self) -> "Sensitivities":
        """The same without the refitted trials."""
        return replace(self, trials=tuple(trial for trial in self.trials if not trial.refitted))

    def rise(self, group: str, refitted: bool = True) -> list[tuple[float, float]]:
        """Shares of the group that are gone, rising, and by how much the loss is higher then; from (0, 0) on.

        With `refitted`, after the refit where the group has one.
        """
        chosen = [trial for trial in self.groups[group] if trial.refitted == refitted]
        chosen = chosen or [trial for trial in self.groups[group] if not trial.refitted]
        return [(0.0, 0.0), *((trial.gone, trial.loss - self.dense) for trial in chosen)]

    def require(self, program: str, groups: Iterable[str]) -> None:
        """Refuse to speak of another model, or of groups that were not measured.

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
                f"the sensitivities do not tell of {len(missing)} of the groups that are to be cut, such as "
                f"{missing[0]}; measure them with the same recipe, destination and protection as the plan"
            )

    @cached_property
    def ways(self) -> list[tuple[bool, float]]:
        """How groups were cut: refitted or not, and the share that was to go."""
        return sorted({(trial.refitted, trial.ratio) for trial in self.trials})

    @cached_property
    def rises(self) -> Mapping[tuple[str, bool, float], float]:
        """By how much the loss rose, by the name of a group and the way in which it was cut."""
        return {(trial.group, trial.refitted, trial.ratio): trial.loss - self.dense for trial in self.trials}

    @cached_property
    def color_scale(self) -> ColorScale:
        """The colors of the rises of all trials."""
        return ColorScale.of_rises(self.rises.values())

    def __repr__(self) -> str:
        head = f"Sensitivities of {len(self.groups)} groups: {len(self.trials)} trials, dense loss {self.dense:.4f}"
        deepest = sorted(((self.rise(name)[-1], name) for name in self.groups), key=lambda pair: -pair[0][1])
        rows = [
            (self.labels.get(name, ""), name, f"{rise:+.4f}", f"at {gone:.0%} cut") for (gone, rise), name in deepest
        ]
        return "\n".join([f"{head} {self.unit}", *(f"  {line}" for line in text_table(rows, limit=6))])

    def _repr_html_(self) -> str:
        return html.part("sensitivities.html", found=self)

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
            table = json.loads(Path(path).read_text(encoding="utf-8"))
            if table.pop("format") != FORMAT:
                raise LoadError(f"{path} is a table of another format than {FORMAT}, which this version reads")
            return cls(**{**table, "trials": tuple(Trial(**trial) for trial in table["trials"])})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as fault:
            raise LoadError(
                f"{path} is no table of sensitivities{misread(fault)}; make one with `graphprune sensitivity`"
            ) from fault
