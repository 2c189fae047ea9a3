"""Options of healing: each has its name, type, default and help text in one place.

The signature of `graphprune.heal`, the command line, ``heal.yaml`` and the identity of a resumed run are made from
these fields. This file imports no torch, so that help texts are shown at once.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from graphprune.errors import OptionError
from graphprune.statistics.data_files import TEXTS
from graphprune.workflows.option_fields import OptionGroup, option, required
from graphprune.workflows.options import RunFiles, Texts
from graphprune.workflows.source_options import HubSource, PathLike

AIMS = ("logits", "hidden", "outputs", "labels")
TRAINED = ("all", "lora", "norms")
RATES = {"all": 1e-4, "lora": 1e-3, "norms": 1e-3}
PRUNED = (
    "The pruned model: a folder that `prune` or `save` wrote; from Python also a module, which is trained in place."
)
_COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG]?)")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True, kw_only=True)
class HealingData(OptionGroup):
    """Options of the data."""

    title: ClassVar[str] = "Data"
    data: Texts | Any = option(
        (),
        f"Training text: {TEXTS}; or a .parquet file. Of a classifier every line is a text; without a teacher, lines "
        "of a .jsonl or .tsv file need a label. From Python also an iterable of batches.",
        metavar="TEXT",
    )
    tokens: str = option("1M", "Tokens to train on, such as 500k or 1M; the data are repeated as often as necessary.")
    epochs: int | None = option(
        None, "Passes over the data, instead of a number of tokens; 1 for batches from Python.", least=1
    )
    length: int = option(512, "Tokens in a window; longer texts of a classifier are truncated.", least=2)
    batch: int = option(16, "Windows, or texts of a classifier, in a step.", least=1)
    accumulate: int = option(
        1,
        "Parts of a step that run one after the other, which takes less memory; so many batches from Python.",
        least=1,
    )
    held_out: int = option(32, "Windows, texts or batches that measure the loss and are not trained on.", least=1)
    masked: float = option(0.15, "The share of tokens that are masked for a masked language model.", share=True)
    seed: int = option(0, "Seed of everything random.", least=0)


@dataclass(frozen=True, kw_only=True)
class Training(OptionGroup):
    """Options of the training."""

    title: ClassVar[str] = "Training"
    teacher: PathLike | Any = option(
        None, "The dense model, as a folder or a name of the hub; from Python also a module.", metavar="MODEL"
    )
    revision: str | None = option(
        None, "The branch, tag or commit of a teacher of the hub; main by default.", metavar="REV"
    )
    aim: str | None = option(
        None,
        "The loss: the divergence from the logits of the teacher (the default with one), that and the distance of "
        "hidden states, the distance of outputs of any kind, or the loss of the labels.",
        choices=AIMS,
    )
    train: str = option(
        "all",
        "The weights that are trained: all, updates of a low rank that are merged at the end, or norms and biases.",
        choices=TRAINED,
    )
    rank: int = option(16, "Rank of the updates (--train lora).", least=1)
    rate: float | None = option(
        None, "The highest learning rate; 0.0001 for all weights and 0.001 for others by default."
    )
    warmup: float = option(0.1, "The share of the steps in which the learning rate rises.", share=True)
    cached: int = option(
        64, "Tokens drawn from the teacher's predictions and stored, where data are repeated; 0 stores nothing.",
        least=0,
    )  # fmt: skip
    evaluations: int = option(20, "Measurements of the held-out loss, each with a checkpoint.", least=1)
    patience: int | None = option(None, "Stop after so many measurements without a lower held-out loss.", least=1)
    checkpointing: bool = option(False, "Compute activations again in the backward pass, which takes less memory.")
    autocast: bool = option(False, "Multiply matrices in bfloat16, faster where processors can.")
    validation: Any = option(
        None, "Batches that measure the loss, where the data are batches; from Python only.", python=True
    )
    loss: Callable[..., Any] | None = option(
        None, "A function of the output and the batch, in place of the loss of labels; from Python only.", python=True
    )
    forward: Callable[..., Any] | None = option(
        None, "A function of the model and a batch that calls the model; from Python only.", python=True
    )


@dataclass(frozen=True, kw_only=True)
class HealingRun(OptionGroup):
    """Options of the run itself: evaluation and device."""

    title: ClassVar[str] = "The run"
    evaluate: Texts = option(
        (),
        "Measure the perplexity on this text before and after, or the accuracy of a classifier on labeled texts.",
        metavar="TEXT",
    )
    windows: int = option(64, "Windows of each such text.", least=1)
    device: str = option("cpu", "Where the models run: cpu or cuda.")


@dataclass(frozen=True, kw_only=True)
class HealOptions(HealingData, Training, HealingRun, HubSource, RunFiles):
    """Options of `graphprune.heal`."""

    pruned: PathLike | Any = field(kw_only=False, metadata=required(PRUNED, metavar="PRUNED"))
    output: PathLike | None = option(
        None, "The new folder; it appears when all is done.", metavar="DIR", flags="--output -o"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.budget
        if self.batch % self.accumulate:
            raise OptionError(f"accumulate must divide batch, got {self.accumulate} parts of {self.batch}")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise OptionError(f"rate must be a positive number, got {self.rate}")
        if self.device not in ("cpu", "cuda"):
            raise OptionError(f"device must be cpu or cuda, got {self.device!r}")

    @property
    def budget(self) -> int:
        """Number of tokens to train on.

        Raises:
            OptionError: if it is no number.
        """
        found = _COUNT.fullmatch(self.tokens.strip())
        if found is None or not (count := int(float(found[1]) * _UNITS[found[2]])):
            raise OptionError(f"tokens must be a number such as 20000, 500k or 1M, got {self.tokens!r}")
        return count

    @property
    def peak_rate(self) -> float:
        """Highest learning rate."""
        return RATES[self.train] if self.rate is None else self.rate
