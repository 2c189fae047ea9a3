"""Zero-shot accuracy of a language model on questions with several answers, as lm-evaluation-harness defines it.

The model reads every answer after its question and chooses the one with the highest likelihood: for ``acc`` by the sum
of the log likelihoods of its tokens, for ``acc_norm`` by that sum divided by the characters of the answer.
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
from graphprune.support.tokenizing import tokenizing


@dataclass(frozen=True)
class Question:
    """Context, the answers that may follow it, and the index of the right one."""

    context: str
    choices: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Accuracy:
    """Accuracy: whether each question is answered correctly, by likelihood and by likelihood over length."""

    right: tuple[bool, ...]
    right_norm: tuple[bool, ...]

    @property
    def acc(self) -> float:
        """Share of correct answers by likelihood."""
        return sum(self.right) / len(self.right)

    @property
    def acc_norm(self) -> float:
        """Share of correct answers by likelihood over length."""
        return sum(self.right_norm) / len(self.right_norm)

    @property
    def deviation(self) -> float:
        """Standard error of `acc_norm`."""
        return sqrt(self.acc_norm * (1 - self.acc_norm) / max(len(self.right) - 1, 1))


def read(path: str | Path) -> list[Question]:
    """Read the questions of a file of JSON lines, which may end in .gz.

    Raises:
        LoadError: if it cannot be read, or holds something else.
    """
    file = Path(path)
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        return [_question(json.loads(line)) for line in raw.decode("utf-8").split("\n") if line.strip()]
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError) as fault:
        raise LoadError(
            f"cannot read questions from {file}{misread(fault)}; expected JSON lines, {QUESTIONS}"
        ) from fault


def ask(model: Program | Path | str, questions: str | Path, first: int | None = None) -> Accuracy:
    """Evaluate a program, or the model of a Hugging Face folder, on all or the first questions of a file.

    Raises:
        LoadError: if the model, its tokenizer or the questions cannot be read.
        CalibrationError: if there is no question, or a likelihood is not finite.
    """
    source = tokenizer_folder(model)
    selected = read(questions)[:first]
    return accuracy(
        model if isinstance(model, Program) else model_folder.module(source), model_folder.tokenizer(source), selected
    )


def accuracy(model: Model, tokenizer: Any, questions: Sequence[Question], *, batch: int = 16) -> Accuracy:
    """Evaluate a program, or a model that is called with `input_ids`, on questions, `batch` answers at a time.

    Raises:
        CalibrationError: if there is no question, or a likelihood is not finite.
    """
    if not questions:
        raise CalibrationError("there are no questions; expected at least one")
    call = logits_function(model)
    rows = [_tokens(tokenizer, q.context, choice) for q in questions for choice in q.choices]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))  # by length, so that little is padded
    likelihoods = torch.zeros(len(rows), dtype=torch.float64)
    with torch.inference_mode(), progress("answering questions", len(rows)) as step:
        for first in range(0, len(order), batch):
            some = order[first : first + batch]
            sums = _likelihoods(call(_padded([rows[i][0] for i in some])), [rows[i] for i in some])
            likelihoods[some] = torch.tensor(list(sums), dtype=torch.float64)
            step(len(some))
    if not torch.isfinite(likelihoods).all():
        raise CalibrationError("the model predicts numbers that are not finite")
    return _judged(questions, likelihoods)


def _judged(questions: Sequence[Question], likelihoods: Tensor) -> Accuracy:
    right, right_norm = list[bool](), list[bool]()
    parts = torch.split(likelihoods, [len(q.choices) for q in questions])
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
    """Token ids of context and choice, and the number in the context; the space between belongs to the choice."""
    with tokenizing():
        before: list[int] = tokenizer(context.rstrip())["input_ids"]
        both: list[int] = tokenizer(f"{context.rstrip()} {choice}")["input_ids"]
    return both, len(before)


def _padded(rows: Sequence[list[int]]) -> Tensor:
    """Token ids, shape (rows, longest); padding follows each row and does not affect it."""
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def _likelihoods(logits: Tensor, rows: Sequence[tuple[list[int], int]]) -> Iterator[float]:
    """Summed log likelihood of the tokens after the context, for each row."""
    for line, (ids, before) in zip(logits, rows, strict=True):
        predicted = line[before - 1 : len(ids) - 1].float().log_softmax(-1)
        yield float(predicted.gather(1, torch.tensor(ids[before:])[:, None]).double().sum())
