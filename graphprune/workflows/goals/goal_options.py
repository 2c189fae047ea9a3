"""Options to ask for a goal instead of a share, and for the frontier of sizes and qualities."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from graphprune.errors import OptionError
from graphprune.planning.goals import Goal, parse_all
from graphprune.statistics.data_files import TEXTS
from graphprune.workflows.option_fields import OptionGroup, option

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True, kw_only=True)
class GoalOptions(OptionGroup):
    """Options to ask for a goal."""

    title: ClassVar[str] = "A goal instead of a share"
    goal: tuple[str, ...] | list[str] = option(
        (),
        "What the pruned model must reach: perplexity <= 1.10x, accuracy >= 98 %, size <= 100 MB, parameters, macs, "
        "kv <= 50 %, latency <= 0.7x on onnxruntime, or decode >= 1.5x; confirmed on held-out data.",
        metavar="GOAL",
    )
    text: str | Path | None = option(
        None,
        f"The text on whose end qualities are measured, and on whose rest the run is calibrated without a calibration "
        f"text: {TEXTS}.",
        metavar="TEXT",
    )
    labelled: str | Path | None = option(
        None,
        'Labelled texts of a classifier: a .jsonl file of "text" and "label", or a .tsv file of texts and labels.',
        metavar="FILE",
    )
    quant: str = option(
        "none",
        "Search models with weights in int8 or int4, too, and take the smallest at the goal: cut, quantized, or both.",
        choices=("none", "int8", "int4"),
    )
    frontier: bool = option(
        False, "Write the curve of size and quality at some shares, from one calibration.", flags="--frontier"
    )
    frontier_at: Sequence[float] = option(SHARES, "The shares of the frontier.", metavar="S,S,...", share=True)

    @property
    def goals(self) -> tuple[Goal, ...]:
        """Parsed goals.

        Raises:
            OptionError: if a text is no goal.
        """
        return parse_all(self.goal)

    @property
    def searches(self) -> bool:
        """Whether the run tries several shares."""
        return bool(self.goal) or self.frontier

    def require_data_for_goals(self, has_metric: bool, has_data: bool) -> None:
        """Refuse goals without the data to confirm them, and options that only goals have.

        Raises:
            OptionError: if there are such.
        """
        for name in ("text", "labelled"):
            if getattr(self, name) is not None and not self.searches:
                raise OptionError(f"{name} is for goals: give a goal such as 'perplexity <= 1.10x', or --frontier")
        if self.quant != "none" and {goal.quantity for goal in self.goals} != {"perplexity"}:
            raise OptionError(
                "quant searches the smallest model at a perplexity; give one goal such as 'perplexity <= 1.10x', and "
                "no other (`graphprune export --quant` quantizes any pruned model)"
            )
        if self.text is not None and self.labelled is not None:
            raise OptionError("give either a text or a file of labelled texts")
        for goal in self.goals:
            if goal.quantity == "perplexity" and self.text is None:
                raise OptionError(f"goal {goal.text!r} is confirmed on a text; give --text FILE")
            if goal.quantity == "accuracy" and self.labelled is None and not has_data:
                raise OptionError(
                    f"goal {goal.text!r} is confirmed on labels; give --labelled FILE, or data in batches"
                )
            if goal.quantity == "metric" and not has_metric:
                raise OptionError(f"goal {goal.text!r} needs a metric: a function of the output and the batch")
