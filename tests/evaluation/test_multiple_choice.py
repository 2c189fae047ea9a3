"""Questions with several answers are judged by the likelihoods of the answers alone."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from graphprune.errors import CalibrationError, LoadError
from graphprune.evaluation import multiple_choice
from graphprune.evaluation.multiple_choice import Question

LETTERS = "abcdefghijklmnopqrstuvwxyz ?:.\n"


class Tokenizer:
    """A token for each character."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [LETTERS.index(c) for c in text.lower()]}


def likes(letter: str) -> object:
    """A model to which one letter is e times as likely as any other."""

    def model(input_ids: Tensor) -> Tensor:
        logits = torch.zeros(*input_ids.shape, len(LETTERS))
        logits[..., LETTERS.index(letter)] = 1.0
        return logits

    return model


def ask(letter: str, *questions: Question, batch: int = 16) -> multiple_choice.Accuracy:
    return multiple_choice.accuracy(likes(letter), Tokenizer(), questions, batch=batch)  # type: ignore[arg-type]


def test_the_likelier_answer_is_chosen() -> None:
    found = ask("x", Question("what?", ("aa", "xx"), 1), Question("what?", ("xx", "aa"), 1))
    assert (found.right, found.acc, found.acc_norm) == ((True, False), 0.5, 0.5)


def test_long_answers_lose_unless_their_length_is_counted() -> None:
    found = ask("x", Question("what?", ("a", "xxxx"), 1))
    assert (found.right, found.right_norm) == ((False,), (True,))


@pytest.mark.parametrize("batch", [1, 3])
def test_batches_make_no_difference(batch: int) -> None:
    questions = [Question("what? " * i, ("a" * i, "xa", "x" * i), 2) for i in range(1, 6)]
    assert ask("x", *questions, batch=batch) == ask("x", *questions)


def test_files_hold_questions_of_two_kinds(tmp_path: Path) -> None:
    lines = [{"context": "c", "choices": ["a", "b"], "label": 1}, {"goal": "g", "sol1": "s", "sol2": "t", "label": 0}]
    text = "\n".join(map(json.dumps, lines)) + "\n"
    (tmp_path / "q.jsonl").write_text(text)
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    expected = [Question("c", ("a", "b"), 1), Question("Question: g\nAnswer:", ("s", "t"), 0)]
    assert multiple_choice.read(tmp_path / "q.jsonl") == multiple_choice.read(tmp_path / "q.jsonl.gz") == expected


def test_what_is_no_question_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"text": "?"}\n')
    with pytest.raises(
        LoadError, match=r"cannot read questions from .*q\.jsonl \(reason: there is no entry 'context'\); expected"
    ):
        multiple_choice.read(tmp_path / "q.jsonl")
    with pytest.raises(CalibrationError, match="there are no questions"):
        ask("x")


def test_likelihoods_that_are_no_numbers_are_refused() -> None:
    def broken(input_ids: Tensor) -> Tensor:
        return torch.full((*input_ids.shape, len(LETTERS)), torch.nan)

    with pytest.raises(CalibrationError, match="not finite"):
        multiple_choice.accuracy(broken, Tokenizer(), [Question("a", ("b", "c"), 0)])
