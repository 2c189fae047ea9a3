"""Examples from texts: windows of tokens packed from documents, and texts with labels."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from graphprune.errors import CalibrationError
from graphprune.healing.data.examples import IGNORED, Batch, Order
from graphprune.healing.data.text_tasks import TextTask
from graphprune.statistics.documents import documents
from graphprune.statistics.labeled_texts import labeled_texts
from graphprune.support.tokenizing import tokenizing
from graphprune.support.workspace import writable

T = TypeVar("T")
TOGETHER = 64  # documents that are tokenized at once
LEAST_TRAINED = 8  # training windows for each held-out one


@dataclass(frozen=True)
class Steps:
    """Division of the examples into steps: `batch` examples each, in `parts` that run one after the other."""

    batch: int
    parts: int
    seed: int


class _Indexed:
    """Examples with a number; those of `held` are never trained on."""

    def __init__(self, task: TextTask, count: int, held: Sequence[int], division: Steps) -> None:
        self.task, self.held, self.division = task, frozenset(held), division
        self.training = sorted(set(range(count)) - self.held)
        self.order = Order(self.training, division.seed)

    def steps(self, start: int, share: range) -> Iterator[list[Batch]]:
        """Endless batches; see `Examples.steps`."""
        size, step = self.division.batch, start
        while True:
            mine = list(self.order.positions(step * size, (step + 1) * size))[share.start :: share.stop]
            yield [self.batch(part) for part in _parts_of(mine, max(1, len(mine) // self.division.parts))]
            step += 1

    def held_out(self) -> Iterator[Batch]:
        """Held-out batches."""
        size = max(1, self.division.batch // self.division.parts)
        for part in _parts_of(sorted(self.held), size):
            yield self.batch([(number, 0) for number in part])

    def batch(self, numbers: Sequence[tuple[int, int]]) -> Batch:
        """Batch of examples, each with the number of the pass over the data."""
        raise NotImplementedError

    def output(self, model: nn.Module, batch: Batch, **options: Any) -> Any:
        """Output of a model on a batch."""
        return model(**batch.inputs, **options)


class TextWindows(_Indexed):
    """Windows of token ids, shape (count, length without special tokens), packed from documents.

    Where the teacher's predictions on all windows are stored (`repeated`), the masked tokens of a window are always the
    same.
    """

    unit = "tokens"

    def __init__(
        self, task: TextTask, ids: Tensor, held: Sequence[int], division: Steps, masked: float, repeated: bool
    ) -> None:
        super().__init__(task, len(ids), held, division)
        self.ids, self.masked, self.repeated = ids, masked, repeated

    def batch(self, numbers: Sequence[tuple[int, int]]) -> Batch:
        """Batch of windows."""
        ids = torch.stack([self.ids[number] for number, _ in numbers]).long()
        stored = self.repeated or self.held.issuperset(number for number, _ in numbers)
        seeds = [self.division.seed + number + (0 if stored else turn * len(self.ids)) for number, turn in numbers]
        inputs, labels = self.task.example(ids, self.masked, seeds)
        keys = tuple(str(number) for number, _ in numbers) if stored else ()
        return Batch(inputs, labels, ids.numel() + self.task.extra * len(ids), keys)


class SeparateTexts(_Indexed):
    """Texts for a classifier, with the numbers of their classes, padded to the longest of a batch."""

    unit = "tokens"

    def __init__(
        self, task: TextTask, tokens: Sequence[Sequence[int]], labels: Sequence[int], held: Sequence[int],
        division: Steps, padding: int,
    ) -> None:  # fmt: skip
        super().__init__(task, len(tokens), held, division)
        self.tokens, self.labels, self.padding = tokens, labels, padding

    def batch(self, numbers: Sequence[tuple[int, int]]) -> Batch:
        """Batch of texts."""
        rows = [torch.tensor(self.tokens[number]) for number, _ in numbers]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.padding)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        labels = torch.tensor([self.labels[number] for number, _ in numbers])
        return Batch(self.task.inputs(ids, mask), labels, int(lengths.sum()), tuple(str(n) for n, _ in numbers))


def _parts_of(things: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` things, the last of which may be shorter."""
    stream = iter(things)
    while part := list(islice(stream, size)):
        yield part


def read_windows(tokenizer: Any, names: Sequence[str | Path], length: int, most: int | None, file: Path) -> Tensor:
    """Windows of token ids packed from documents, at most `most`, memory-mapped from `file`, which is written once.

    An end token follows every document, if the tokenizer has one.

    Raises:
        CalibrationError: if the texts are too short for two windows.
        LoadError: if a text cannot be read.
    """
    if not file.is_file():
        partial = file.with_name(f"{file.name}.partial")
        with writable(file.parent), partial.open("wb") as out:
            limit = None if most is None else most * length
            count = 0
            for ids in _tokenized(tokenizer, names):
                part = ids if limit is None else ids[: limit - count]
                out.write(torch.tensor(part, dtype=torch.int32).numpy().tobytes())
                count += len(part)
                if count == limit:
                    break
        partial.replace(file)
    windows = file.stat().st_size // 4 // length
    if windows < 2:
        raise CalibrationError(
            f"the data have {file.stat().st_size // 4:,} tokens, but two windows of {length} are needed, one to train "
            "on and one to measure the loss: name a longer text, or choose shorter windows (length)"
        )
    return torch.from_file(str(file), size=windows * length, dtype=torch.int32).view(windows, length)


def _tokenized(tokenizer: Any, names: Sequence[str | Path]) -> Iterator[list[int]]:
    """Token ids of some documents at a time."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stream = (document for name in names for document in documents(name))
    for some in _parts_of(stream, TOGETHER):
        with tokenizing():
            rows = tokenizer([one.text for one in some], add_special_tokens=False, verbose=False)["input_ids"]
        yield [token for row, one in zip(rows, some, strict=True) for token in (*row, *(end if one.ends else ()))]


def held_windows(count: int, most: int) -> list[int]:
    """Numbers of the held-out windows, spread evenly: at most `most`, and few where there are few windows."""
    held = max(1, min(most, count // (LEAST_TRAINED + 1)))
    return [(i * count + count // 2) // held for i in range(held)]


def read_separate(
    tokenizer: Any, names: Sequence[str | Path], length: int, classes: int | None, labels: Mapping[str, int]
) -> tuple[list[list[int]], list[int]]:
    """Tokens of texts, truncated to `length` tokens, and their classes, below `classes`; `IGNORED` ones for None.

    A label is the number of a class, or one of the names in `labels`.

    Raises:
        CalibrationError: if a text has no label, or one that the model does not have, or no tokens; or there are fewer
            than two.
        LoadError: if a text cannot be read.
    """
    if classes is None:
        rows = [(document.text, IGNORED) for name in names for document in documents(name, True, labels)]
    else:
        rows = [row for name in names for row in labeled_texts(name, classes, labels)]
    texts, numbers = [text for text, _ in rows], [number for _, number in rows]
    if len(rows) < 2:
        raise CalibrationError(f"the data have {len(rows)} texts for a classifier; expected at least two")
    with tokenizing():
        tokens = tokenizer(texts, truncation=True, max_length=length, verbose=False)["input_ids"]
    if [] in tokens:
        raise CalibrationError(
            f"text {tokens.index([]) + 1} of {len(tokens)}, {texts[tokens.index([])]!r}, has no tokens; remove its line"
        )
    return tokens, numbers


def held_texts(count: int, most: int, seed: int) -> list[int]:
    """Numbers of the held-out texts, drawn by the seed, since files may be sorted by label."""
    held = max(1, min(most, count // (LEAST_TRAINED + 1)))
    return sorted(random.Random(seed).sample(range(count), held))
