"""Record of a healing: its options, data, curve and throughput, for the report of the folder and for users."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from graphprune.healing.heal_options import HealOptions
from graphprune.healing.models import LoadedModel
from graphprune.healing.trainer import Outcome
from graphprune.healing.training_state import Measurement
from graphprune.reports.report import FILE, Report, digests, plain
from graphprune.version import __version__


@dataclass(frozen=True)
class Healing:
    """Record of a healing.

    `unit` is what `tokens` counts. `examples` are the numbers of training and of held-out examples, `best` the step
    whose weights are the result, `perplexity` the perplexities before and after by text, `accuracy` those of a
    classifier, `errors` the largest relative differences by comparison, and `tokens_per_second` the throughput of
    training, without measurements of the loss.
    """

    train: str
    aim: str
    teacher: str
    steps: int
    tokens: int
    unit: str
    examples: tuple[int, int]
    trained: int  # parameters that were trained
    best: int
    stopped_early: bool
    seconds: float
    tokens_per_second: float
    curve: tuple[Measurement, ...] = ()
    perplexity: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    accuracy: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    command: str = ""

    @property
    def held_out(self) -> tuple[float | None, float | None]:
        """Loss on held-out data before, and that of the result."""
        at = {point.step: point.held_out_loss for point in self.curve}
        return at.get(0), at.get(self.best)

    def __repr__(self) -> str:
        before, after = ("-" if loss is None else f"{loss:.4f}" for loss in self.held_out)
        lines = [
            f"Healing: {self.tokens:,} {self.unit} in {self.steps:,} steps, {self.tokens_per_second:,.0f} a second"
        ]
        lines.append(f"  held-out loss: {before} -> {after} (aim {self.aim}, trained {self.train})")
        lines += [f"  perplexity: {a:.2f} -> {b:.2f} on {text}" for text, (a, b) in self.perplexity.items()]
        lines += [f"  accuracy: {a:.2%} -> {b:.2%} on {text}" for text, (a, b) in self.accuracy.items()]
        return "\n".join((*lines, *(f"  {note}" for note in self.notes)))


def record(
    options: HealOptions, aim: str, outcome: Outcome, planned: int, unit: str, examples: tuple[int, int], **facts: Any
) -> Healing:
    """Record of a training that planned so many steps."""
    progress = outcome.progress
    notes = []
    if progress.best != progress.step:
        notes.append(
            "no step lowered the held-out loss: the weights are those before; choose a lower rate, or more data"
            if progress.best == 0
            else f"the weights are those of step {progress.best} of {progress.step}, with the lowest held-out loss"
        )
    return Healing(
        train=options.train, aim=aim, teacher=_name_of(options.teacher), steps=progress.step, tokens=progress.tokens,
        unit=unit, examples=examples, best=progress.best, stopped_early=progress.step < planned,
        seconds=round(progress.seconds, 3), curve=progress.curve, notes=tuple(notes), trained=outcome.trained,
        tokens_per_second=progress.tokens / progress.seconds if progress.seconds else 0.0, **facts,
    )  # fmt: skip


def _name_of(teacher: Any) -> str:
    """Name of a teacher: its path, or its class."""
    return "" if teacher is None else teacher if isinstance(teacher, str) else type(teacher).__name__


def report_of(pruned: LoadedModel, healing: Healing, folder: Path) -> Report:
    """Report of a healed folder: that of the pruned one, if it has one, with the healing and new checksums."""
    changes = {"healing": plain(healing), "sha256": digests(folder)}
    if (pruned.folder / FILE).is_file():
        return replace(Report.load(pruned.folder), **changes)
    count = sum(weight.numel() for weight in pruned.module.parameters())
    destination = "stock" if pruned.program is None else "free"
    return Report(
        model=str(pruned.folder), recipe="none", destination=destination, parameters_before=count,
        parameters_after=count, sparsity_asked=None, plan="", program="", version=__version__, **changes,
    )  # fmt: skip
