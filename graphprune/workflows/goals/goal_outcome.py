"""Outcome of a run with goals: its trials, and what was claimed and measured for each goal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphprune.planning.goals import Goal
from graphprune.reports.frontier import Frontier, FrontierPoint
from graphprune.workflows.goals.goal_measures import Reading

WEIGHTS = ("*.safetensors", "*.pt2", "*.onnx", "*.data")  # files of weights, by destination


@dataclass(frozen=True)
class ShareTrial:
    """Measurements of the model with a share removed, by the key of their goals; `plan` is the hash of its cut."""

    share: float
    readings: Mapping[str, Reading]
    plan: str = ""

    def size(self, quant: str = "none") -> float:
        """Bytes of the stored weights, in float or quantized."""
        return self.readings[quantized("size", quant)].pruned.estimate().value


@dataclass(frozen=True)
class Reached:
    """Fact: goals with their readings at the chosen `share` of a `budget`, and all trials, in the order of the shares.

    `quant` names the stored weights of the smallest model, ``none`` where it is not quantized. `alternatives` are the
    bytes of the smallest models at the goals by how they were made. With `frontier`, all trials are reported.
    """

    goals: tuple[Goal, ...]
    share: float
    trials: tuple[ShareTrial, ...]
    budget: str = "parameters"
    quant: str = "none"
    alternatives: Mapping[str, float | None] = field(default_factory=dict)
    frontier: bool = False

    @property
    def chosen(self) -> ShareTrial:
        """Trial of the chosen share."""
        return next(trial for trial in self.trials if trial.share == self.share)

    def outcomes(self) -> tuple[dict[str, Any], ...]:
        """Every goal with its bound, the measured value and its interval, ready for JSON."""
        return tuple(outcome(goal, self.chosen.readings[quantized(goal.key, self.quant)]) for goal in self.goals)

    def curve(self) -> Frontier:
        """All trials with the dense model, and what was measured of each."""
        last = self.trials[-1].readings
        dense = FrontierPoint(0.0, {name: reading.dense.estimate() for name, reading in last.items()})
        rest = (FrontierPoint(t.share, {n: r.pruned.estimate() for n, r in t.readings.items()})
                for t in self.trials if t.share)  # fmt: skip
        return Frontier([dense, *rest])

    def notes(self) -> Iterator[str]:
        """The number of trials, and the sizes of the alternatives."""
        if self.goals:
            yield f"the share {self.share:.2%} is that of {len(self.trials)} trials, from one calibration"
        if self.alternatives:
            known = {name: "none" if b is None else f"{b / 1e6:.2f} MB" for name, b in self.alternatives.items()}
            sizes = (f"{name} {size}" for name, size in known.items())
            yield f"smallest at the goals: {', '.join(sizes)}"


def quantized(key: str, quant: str) -> str:
    """Key of a measurement of the quantized model."""
    return key if quant == "none" else f"{key} in {quant}"


def outcome(goal: Goal, reading: Reading) -> dict[str, Any]:
    """Goal and its measurement."""
    value, units = reading.estimate(goal), len(reading.pruned.values)
    held_out = f", on {units} held-out units" if units > 1 else ""
    return {
        "goal": goal.text,
        "text": f"goal {goal.text}: {measured_text(goal, reading)}{held_out}",
        "value": value.value,
        "low": value.low,
        "high": value.high,
        "dense": reading.dense.estimate().value,
        "pruned": reading.pruned.estimate().value,
        "units": units,
        "met": reading.met(goal),
    }


def measured_text(goal: Goal, reading: Reading) -> str:
    """Measured value with its interval, as in ``perplexity is 1.08x (1.07x to 1.09x)``."""
    value = reading.estimate(goal)
    ends = f" ({goal.shown(value.low)} to {goal.shown(value.high)})" if value.low < value.high else ""
    return f"{goal.key} is {goal.shown(value.value)}{ends}"


def measured_texts(trial: ShareTrial, goals: Sequence[Goal]) -> str:
    """Measured values of goals, with their intervals."""
    return ", ".join(measured_text(goal, trial.readings[goal.key]) for goal in goals)


def weight_bytes(folder: Path) -> int:
    """Bytes of the files of weights in a folder, those of its subfolders apart."""
    return sum(path.stat().st_size for pattern in WEIGHTS for path in folder.glob(pattern))
