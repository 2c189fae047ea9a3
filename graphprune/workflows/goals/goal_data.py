"""Data of a run with a goal: a part to calibrate on, and another part, which nothing was fitted to, to confirm on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from graphprune.errors import CalibrationError
from graphprune.evaluation.perplexity import logits, tokenizer_folder
from graphprune.huggingface import model_folder
from graphprune.ir.program import Program
from graphprune.statistics import texts
from graphprune.statistics.batch_inputs import LABELS, described
from graphprune.statistics.collector import BATCH_TOKENS, HELD_OUT, token_inputs
from graphprune.statistics.labeled_texts import labeled_texts
from graphprune.support.tokenizing import tokenizing
from graphprune.workflows.options import PruneOptions

CONFIRMING = 3  # one of so many batches confirms, where there is no test data
LONGEST = 128  # tokens of a labelled text
ROWS = 16  # labelled texts in a batch
FEWEST = 8  # windows or batches that confirm
DRAWN = 4  # times as many windows are calibrated on at most, as confirm, where a text has few


def split_text(
    program: Program, options: PruneOptions, tokens: int | None = None
) -> tuple[Tensor | None, tuple[Any, ...]]:
    """Windows of the text of a run that confirm, shape (n, length), and the batches before them that calibrate.

    There are no batches where another text calibrates, and no windows without a text.

    Raises:
        CalibrationError: if the text is too short for both.
        LoadError: if it cannot be read.
    """
    if options.text is None:
        return None, ()
    tokenizer = model_folder.tokenizer(tokenizer_folder(program))
    ids = texts.windows(tokenizer, texts.read(options.text), options.length)
    if options.calibration is not None:
        if Path(options.calibration).absolute() == Path(options.text).absolute():
            raise CalibrationError(
                f"{options.text} is both the calibration text and the text of the goal; omit calibration, and one part "
                "of the text calibrates and the other confirms"
            )
        return _confirming(ids, options.windows, options), ()
    held = min(options.windows, len(ids) // (1 + DRAWN))
    windows, before = _confirming(ids[len(ids) - held :], held, options), ids[: len(ids) - held]
    if len(before) < options.samples:
        raise CalibrationError(
            f"the text {options.text} has {len(ids)} windows of {options.length} tokens: {held} confirm, and "
            f"{options.samples} are needed to calibrate; name a longer text, or request fewer samples or shorter ones"
        )
    drawn = torch.randperm(len(before), generator=torch.Generator().manual_seed(options.seed))[: options.samples]
    size = max(1, min((tokens or BATCH_TOKENS) // options.length, options.samples // HELD_OUT))
    return windows, tuple(((), token_inputs(program, part)) for part in torch.split(before[drawn], size))


def _confirming(ids: Tensor, count: int, options: PruneOptions) -> Tensor:
    """The last windows, at least `FEWEST`."""
    if min(len(ids), count) < FEWEST:
        raise CalibrationError(
            f"goals are confirmed on at least {FEWEST} windows, and the text {options.text} gives "
            f"{min(len(ids), count)} of {options.length} tokens; name a longer text, or choose a smaller --length or "
            "more --windows"
        )
    return ids[len(ids) - count :]


def with_goal_data(options: PruneOptions, model: nn.Module | Program) -> PruneOptions:
    """Options whose data does not confirm: test data is what `test` holds, or a part of the data; with a metric.

    Raises:
        CalibrationError: if there are too few batches.
        LoadError: if labelled texts cannot be read.
    """
    if options.labelled is not None:
        assert isinstance(model, Program)
        loss: Any = options.loss if options.loss is not None else label_loss
        options = replace(options, labelled=None, data=_labelled_batches(model, options.labelled), loss=loss)
    if options.data is None:
        return options
    if options.test is None:
        batches = list(options.data() if callable(options.data) else options.data)
        count = len(batches) // CONFIRMING
        if count < 2:
            raise CalibrationError(
                f"the data has {len(batches)} batches, of which one in {CONFIRMING} confirms the goal, expected at "
                f"least {2 * CONFIRMING}; pass more, in smaller batches, or test="
            )
        options = replace(options, data=batches[: len(batches) - count], test=batches[len(batches) - count :])
    measured = any(goal.quantity == "accuracy" for goal in options.goals)
    return replace(options, metric=accuracy) if measured and options.metric is None else options


def accuracy(output: Any, batch: Any) -> float:
    """Share of the inputs of a batch whose highest score is that of their label."""
    scores, labels = logits(output, 2), labels_of(batch)
    return float((scores.argmax(1) == labels.to(scores.device)).double().mean())


def label_loss(output: Any, batch: Any) -> Tensor:
    """Mean negative log likelihood of the labels of a batch."""
    return cross_entropy(logits(output, 2).float(), labels_of(batch))


def labels_of(batch: Any) -> Tensor:
    """Labels of a batch: an entry of a dict with such a name, or the last part of a tuple.

    Raises:
        CalibrationError: if it has none.
    """
    if isinstance(batch, Mapping):
        known = next((batch[name] for name in batch if name in LABELS), None)
    else:
        known = batch[-1] if isinstance(batch, Sequence) and len(batch) > 1 else None
    if not isinstance(known, Tensor) or known.is_floating_point() or known.dim() != 1:
        raise CalibrationError(
            f"the batch {described(batch)} has no labels, whole numbers in its last part or under 'labels'; pass "
            "metric=, a function of the output and the batch"
        )
    return known


def _labelled_batches(program: Program, file: str | Path) -> list[dict[str, Tensor]]:
    """Batches of labelled texts of similar lengths, in an order that does not depend on the labels."""
    folder, names = tokenizer_folder(program), [*program.inputs[1]]
    tokenizer = model_folder.tokenizer(folder)
    if "input_ids" not in names:
        raise CalibrationError(f"a labelled text gives token ids, and the model takes {', '.join(names)}; pass data")
    labelled = list(labeled_texts(file, names=model_folder.label_names(folder)))
    with tokenizing():
        rows = [(tokenizer(text, truncation=True, max_length=LONGEST)["input_ids"], label) for text, label in labelled]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    near = sorted(order, key=lambda i: len(rows[i][0]))  # equally long ones in the drawn order: little padding
    starts = [*range(0, len(near), ROWS), len(near)]
    parts = [[rows[i] for i in near[a:b]] for a, b in pairwise(starts)]
    drawn = torch.randperm(len(parts), generator=torch.Generator().manual_seed(1)).tolist()
    padding = tokenizer.pad_token_id or 0
    return [_batch(parts[i], padding, names) for i in drawn]


def _batch(rows: Sequence[tuple[list[int], int]], padding: int, names: Sequence[str]) -> dict[str, Tensor]:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*ids, *[padding] * (longest - len(ids))] for ids, _ in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows])
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: known[name] for name in names if name in known} | {"labels": torch.tensor([y for _, y in rows])}
