"""Bits per byte of language models, which compares models whose tokenizers differ, and tokens per word."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphprune.display.progress import progress
from graphprune.errors import CalibrationError
from graphprune.evaluation.perplexity import negative_log_likelihood
from graphprune.statistics import texts
from graphprune.support.tokenizing import tokenizing

_CHARACTERS = 2  # of a window for each of its tokens


@dataclass(frozen=True)
class TextCost:
    """Cost of a text: bits of a model for each byte of it, None if it is not measured, and tokens for each word."""

    bits_per_byte: float | None
    tokens_per_word: float
    windows: int


def windows_of_text(text: str | Path, length: int, count: int) -> list[str]:
    """First windows of a text, each of few enough characters that it has no more than `length` tokens in most scripts.

    Windows end behind a space, so that no word is divided.

    Raises:
        LoadError: if the text cannot be read.
        CalibrationError: if it is too short.
    """
    windows = list(islice(_windows(texts.read(text), length * _CHARACTERS), count))
    if len(windows) < count:
        raise CalibrationError(
            f"the text {text} has {len(windows)} windows of {length * _CHARACTERS} characters, expected {count}; "
            "name a longer text, or request fewer windows"
        )
    return windows


def _windows(text: str, size: int) -> Iterator[str]:
    start = 0
    while start + size <= len(text):
        end = max(text.rfind(" ", start, start + size), text.rfind("\n", start, start + size)) + 1
        end = end if end > start else start + size
        yield text[start:end]
        start = end


def cost(model: Callable[..., Any] | None, tokenizer: Any, windows: Sequence[str]) -> TextCost:
    """Measure a causal language model on windows of a text; without a model, only their tokens.

    The first token of a window is predicted from the token for the start of a text, or, where there is none, not
    counted.

    Raises:
        CalibrationError: if the likelihoods are not finite.
    """
    bits, size, tokens = 0.0, 0, 0
    with torch.inference_mode(), progress("measuring bits per byte", len(windows)) as step:
        for window in windows:
            with tokenizing():
                ids = list(tokenizer(window, add_special_tokens=False, verbose=False)["input_ids"])
            tokens += len(ids)
            if model is not None:
                more, counted = _bits(model, tokenizer, ids, window)
                bits, size = bits + more, size + counted
            step(1)
    if not bits == bits or bits == float("inf"):
        raise CalibrationError("the model predicts numbers that are not finite")
    words = sum(len(window.split()) for window in windows)
    return TextCost(bits / size if size else None, tokens / max(words, 1), len(windows))


def _bits(model: Callable[..., Any], tokenizer: Any, ids: list[int], window: str) -> tuple[float, int]:
    """Bits of the tokens of a window, and the bytes that they encode."""
    start = tokenizer.bos_token_id
    skipped = 0 if start is not None else len(tokenizer.decode(ids[:1]).encode())
    row = torch.tensor([[start, *ids] if start is not None else ids])
    scores: Tensor = model(input_ids=row).logits
    return negative_log_likelihood(scores[0, :-1], row[0, 1:]) / log(2), len(window.encode()) - skipped
