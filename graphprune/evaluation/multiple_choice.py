"""Zero-shot accuracy of a language model on questions with several answers, as lm-evaluation-harness defines it.

Every answer is read after its question; the one to which the model gives the highest likelihood is its choice:
``acc`` by the sum of the log likelihoods of its tokens, ``acc_norm`` by that sum over the answer's characters.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphprune.display.progress import progress
from graphprune.errors import CalibrationError, LoadError, misread
from graphprune.evaluation.perplexity import Model, logits_function, tokenizer_folder
from graphprune.huggingface import model_folder
from graphprune.ir.program import Program
from graphprune.statistics.data_files import QUESTIONS


@dataclass(frozen=True)
class Question:
    """A context, the answers that may follow it, and which of them is right."""

    context: str
    choices: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Accuracy:
    """Which questions were answered rightly, by likelihood and by likelihood over length."""

    right: tuple[bool, ...]
    right_norm: tuple[bool, ...]

    @property
    def acc(self) -> float:
        """The share of right answers by likelihood."""
        return sum(self.right) / len(self.right)

    @property
    def acc_norm(self) -> float:
        """The share of right answers by likelihood over length."""
        return sum(self.right_norm) / len(self.right_norm)

    @property
    def deviation(self) -> float:
        """The standard error of `acc_norm`."""
        return sqrt(self.acc_norm * (1 - self.acc_norm) / max(len(self.right) - 1, 1))


def read(path: str | Path) -> list[Question]:
    """The questions of a file of JSON lines, which may end in .gz.

    Raises:
        LoadError: if it cannot be read, or holds something else.
    """
    where = Path(path)
    try:
        raw = gzip.decompress(where.read_bytes()) if where.suffix == ".gz" else where.read_bytes()
        return [_question(json.loads(line)) for line in raw.decode("utf-8").split("\n") if line.strip()]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as fault:
        raise LoadError(
            f"cannot read questions from {where}{misread(fault)}; expected JSON lines, {QUESTIONS}"
        ) from fault


def ask(model: Program | Path | str, questions: str | Path, first: int | None = None) -> Accuracy:
    """Ask a program, or the model of a Hugging Face folder, the questions of a file, or only so many from its start.

    Raises:
        LoadError: if the model, its tokenizer or the questions cannot be read.
        CalibrationError: if there is no question, or a likelihood is not finite.
    """
    source = tokenizer_folder(model)
    asked = read(questions)[:first]
    return accuracy(
        model if isinstance(model, Program) else model_folder.module(source), model_folder.tokenizer(source), asked
    )


def accuracy(model: Model, tokenizer: Any, questions: Sequence[Question], *, batch: int = 16) -> Accuracy:
    """Ask a program, or a model that is called with `input_ids`, some questions; `batch` answers at a time.

    Raises:
        CalibrationError: if there is no question, or a likelihood is not finite.
    """
    if not questions:
        raise CalibrationError("there are no questions; expected at least one")
    call = logits_function(model)
    asked = [_tokens(tokenizer, q.context, choice) for q in questions for choice in q.choices]
    order = sorted(range(len(asked)), key=lambda i: len(asked[i][0]))  # of like lengths, so that little is padded
    found = torch.zeros(len(asked), dtype=torch.float64)
    with torch.inference_mode(), progress("asking questions", len(asked)) as step:
        for first in range(0, len(order), batch):
            some = order[first : first + batch]
            sums = _likelihoods(call(_padded([asked[i][0] for i in some])), [asked[i] for i in some])
            found[some] = torch.tensor(list(sums), dtype=torch.float64)
            step(len(some))
    if not torch.isfinite(found).all():
        raise CalibrationError("the model predicts numbers that are not finite")
    return _judged(questions, found)


def _judged(questions: Sequence[Question], found: Tensor) -> Accuracy:
    right, right_norm = list[bool](), list[bool]()
    parts = torch.split(found, [len(q.choices) for q in questions])
    for question, sums in zip(questions, parts, strict=True):
        lengths = torch.tensor([len(choice) for choice in question.choices])
        right.append(int(sums.argmax()) == question.label)
        right_norm.append(int((sums / lengths).argmax()) == question.label)
    return Accuracy(tuple(right), tuple(right_norm))


def _question(item: dict[str, Any]) -> Question:
    if "goal" in item:
        return Question(f"Question: {item['goal']}\nAnswer:", (item["sol1"], item["sol2"]), int(item["label"]))
    return Question(item["context"], tuple(item["choices"]), int(item["label"]))


def _tokens(tokenizer: Any, context: str, choice: str) -> tuple[list[int], int]:
    """The tokens of both, and how many of them are the context's; the space between them belongs to the choice."""
    before: list[int] = tokenizer(context.rstrip())["input_ids"]
    both: list[int] = tokenizer(f"{context.rstrip()} {choice}")["input_ids"]
    return both, len(before)


def _padded(rows: Sequence[list[int]]) -> Tensor:
    """Token ids, shape (rows, longest); what follows a row is not looked at."""
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def _likelihoods(logits: Tensor, rows: Sequence[tuple[list[int], int]]) -> Iterator[float]:
    """The summed log likelihood of what follows the context in each row."""
    for line, (ids, before) in zip(logits, rows, strict=True):
        guessed = line[before - 1 : len(ids) - 1].float().log_softmax(-1)
        yield float(guessed.gather(1, torch.tensor(ids[before:])[:, None]).double().sum())
