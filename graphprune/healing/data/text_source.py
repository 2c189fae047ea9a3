"""Source of examples from texts: how many there are, and how many steps the budget of tokens makes of them."""

import math
from pathlib import Path

from graphprune.errors import CalibrationError, OptionError
from graphprune.healing.data import text_examples as texts
from graphprune.healing.data.text_tasks import TextTask
from graphprune.healing.heal_options import HealOptions
from graphprune.healing.models import LoadedModel
from graphprune.healing.training_run import TrainingSource, aim_of
from graphprune.support import distributed

TOKENS = "tokens.bin"


def text_source(options: HealOptions, task: TextTask, pruned: LoadedModel, folder: Path) -> TrainingSource:
    """Source of the examples of the texts of a run, whose tokens are stored in `folder`.

    Raises:
        CalibrationError: if the data are too short, or have labels that the model does not have.
        LoadError: if a text cannot be read.
        OptionError: if a step cannot be divided among processes.
    """
    parts = options.accumulate * distributed.world_size()
    if options.batch % parts:
        raise OptionError(
            f"batch {options.batch} cannot be divided into {options.accumulate} parts of {distributed.world_size()} "
            f"processes; choose a multiple of {parts}"
        )
    division = texts.Steps(options.batch, options.accumulate, options.seed)
    if task.kind == "classifier":
        return _separate(options, task, pruned, division)
    windows = None if options.epochs else -(-options.budget // options.length)
    ids = texts.read_windows(
        pruned.tokenizer(), options.data, options.length - task.extra,
        None if windows is None else windows + options.held_out, folder / TOKENS,
    )  # fmt: skip
    held = texts.held_windows(len(ids), options.held_out)
    trained = len(ids) - len(held)
    steps = -(-(trained * options.epochs if options.epochs else windows or 1) // options.batch)
    repeated = steps * options.batch > trained
    examples = texts.TextWindows(task, ids, held, division, options.masked, repeated and options.cached > 0)
    widest = int(ids.amax(1).argmax())  # the window with the greatest token
    example = ((), task.unmasked(ids[widest : widest + 1].long()))
    return TrainingSource(examples, steps, steps * options.batch * options.length, (trained, len(held)), example)


def _separate(options: HealOptions, task: TextTask, pruned: LoadedModel, division: texts.Steps) -> TrainingSource:
    """Source of the texts of a classifier; they need labels only if these are the aim."""
    tokenizer = pruned.tokenizer()
    classes = pruned.classes(task) if aim_of(options) == "labels" else None
    rows, labels = texts.read_separate(tokenizer, options.data, options.length, classes, pruned.label_names)
    if classes is not None and len(set(labels)) < 2:
        raise CalibrationError(f"all {len(rows)} texts have the label {labels[0]}; a classifier needs several")
    held = texts.held_texts(len(rows), options.held_out, options.seed)
    examples = texts.SeparateTexts(task, rows, labels, held, division, tokenizer.pad_token_id or 0)
    trained, mean = len(rows) - len(held), sum(map(len, rows)) / len(rows)
    count = trained * options.epochs if options.epochs else math.ceil(options.budget / mean)
    steps = -(-count // options.batch)
    longest = max(range(len(rows)), key=lambda number: len(rows[number]))
    widest = max(range(len(rows)), key=lambda number: max(rows[number]))
    example = ((), examples.batch([(longest, 0), (widest, 0)]).inputs)
    return TrainingSource(examples, steps, round(steps * options.batch * mean), (trained, len(held)), example)
