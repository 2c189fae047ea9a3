"""Texts for calibration and evaluation, and windows of their tokens."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import CalibrationError
from graphprune.statistics.documents import documents
from graphprune.support.tokenizing import tokenizing

SEPARATOR = "\n\n"  # documents


def read(text: str | Path) -> str:
    """Read a text by its name.

    The name is that of a file: plain text (.txt, .raw, any other) or JSON lines with a "text" field (.jsonl), either of
    them compressed (.gz); ``c4.jsonl.gz[0:1500]`` are the first 1500 documents. ``pydoc`` is the documentation of
    Python that comes with every interpreter, ``pydoc:first`` and ``pydoc:second`` its halves.

    Raises:
        LoadError: if the text does not exist, or cannot be read.
    """
    parts = (f"{one.text}{SEPARATOR if one.ends else ''}" for one in documents(text))
    return "".join(parts).removesuffix(SEPARATOR)


def windows(tokenizer: Any, text: str, length: int) -> Tensor:
    """Consecutive windows of token ids, shape ``(n, length)``, without the incomplete last one.

    No token for the beginning of a text is added.

    Raises:
        CalibrationError: if the text is too short for one window.
    """
    ids = _tokens(tokenizer, text)
    _require(len(ids), 1, length)
    whole = len(ids) // length
    return torch.tensor(ids[: whole * length]).view(whole, length)


def samples(tokenizer: Any, text: str, samples: int, length: int, seed: int) -> Tensor:
    """Windows of token ids drawn by `seed` without replacement, shape ``(samples, length)``.

    Raises:
        CalibrationError: if the text has fewer windows.
    """
    ids = _tokens(tokenizer, text)
    _require(len(ids), samples, length)
    whole = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    drawn = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))[:samples]
    return whole[drawn]


def _tokens(tokenizer: Any, text: str) -> list[int]:
    with tokenizing():
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _require(tokens: int, count: int, length: int) -> None:
    if count < 1 or length < 2:
        raise CalibrationError(f"got {count} windows of {length} tokens, expected at least 1 of at least 2")
    if tokens == 0:
        raise CalibrationError(f"the text is empty; expected at least {count * length:,} tokens: name another text")
    if tokens < count * length:
        fewer = f"no more than {tokens // length} samples" if tokens >= length else "shorter windows"
        raise CalibrationError(
            f"the text has {tokens:,} tokens, but {count} x {length} = {count * length:,} are needed; "
            f"name a longer text, or request {fewer}"
        )
