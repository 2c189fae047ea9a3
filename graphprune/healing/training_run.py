"""Training of a student on a source of examples, and the options that it needs."""

from dataclasses import dataclass

from torch import nn

from graphprune.errors import OptionError
from graphprune.healing.data.examples import Examples
from graphprune.healing.heal_options import HealOptions
from graphprune.healing.losses import HealingLoss
from graphprune.healing.teacher import Teacher
from graphprune.healing.trained_weights import TrainedWeights
from graphprune.healing.trainer import Outcome, Schedule, Trainer
from graphprune.ir.program import Inputs
from graphprune.support.workspace import Workspace


def aim_of(options: HealOptions) -> str:
    """Aim of a run: the explicit one, else the logits of the teacher if there is one, else labels."""
    return options.aim or ("labels" if options.teacher is None else "logits")


def require_aim(options: HealOptions, texts: bool) -> None:
    """Refuse options that do not go together; `texts` if the data are texts.

    Raises:
        OptionError: if they do not go together.
    """
    aim = aim_of(options)
    if aim != "labels" and options.teacher is None:
        raise OptionError(f"aim={aim!r} needs a teacher, the dense model")
    if aim == "labels" and options.teacher is not None:
        raise OptionError("aim='labels' needs no teacher; omit one of the two")
    if aim != "labels" and options.loss is not None:
        raise OptionError(
            f"the loss is that of labels, and aim is {aim!r}; omit loss or teacher, or compare with the teacher in loss"
        )
    if texts and (options.loss or options.forward or options.validation is not None):
        raise OptionError("loss, forward and validation need batches as data; texts have a loss of their own")
    if not texts and aim == "labels" and options.loss is None:
        raise OptionError(
            "batches need a loss or a teacher: loss=lambda output, batch: cross_entropy(output, batch[1]), or "
            "output.loss for a model that computes its own"
        )


@dataclass(frozen=True)
class TrainingSource:
    """Examples of a training, the number of its steps, and of the tokens in them.

    `counts` are the numbers of training and of held-out examples, and `example` the inputs of a call.
    """

    examples: Examples
    steps: int
    total: int
    counts: tuple[int, int]
    example: Inputs


def train(
    options: HealOptions,
    student: nn.Module,
    teacher: nn.Module | None,
    source: TrainingSource,
    workspace: Workspace | None,
) -> Outcome:
    """Train a student; afterwards it has the best weights.

    Raises:
        CalibrationError: if a loss is not finite.
        WorkspaceError: if a checkpoint cannot be written or read.
    """
    aim = aim_of(options)
    guide = None
    if teacher is not None:
        drawn = options.cached if workspace is not None else 0
        folder = workspace.folder / "teacher" if workspace is not None else None
        guide = Teacher(
            teacher.requires_grad_(False), source.examples, drawn, folder, options.seed, options.autocast,
            hidden=aim == "hidden", predicts=aim != "outputs",
        )  # fmt: skip
    schedule = Schedule(source.steps, options.peak_rate, options.warmup, options.evaluations, options.patience)
    weights = TrainedWeights.choose(student, options.train, options.rank, options.seed)
    try:
        outcome = Trainer(
            student, weights, source.examples, HealingLoss(aim, options.loss), schedule, guide, options.seed,
            options.autocast, options.device, source.total, workspace,
        ).run()  # fmt: skip
        weights.load(outcome.best)
    finally:
        weights.merge()
        student.eval()
    return outcome
