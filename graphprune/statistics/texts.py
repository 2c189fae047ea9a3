"""Texts for calibration and evaluation, and windows of their tokens."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import CalibrationError, LoadError, because
from graphprune.statistics.data_files import PYDOC, TEXTS

SEPARATOR = "\n\n"  # documents

_RANGE = re.compile(r"(?P<path>.+)\[(?P<start>\d*):(?P<end>\d*)\]")


def read(text: str | Path) -> str:
    """Read a text by its name.

    The name is that of a file: plain text (.txt, .raw, any other) or JSON lines with a "text" field (.jsonl), either of
    them compressed (.gz); ``c4.jsonl.gz[0:1500]`` are the first 1500 documents. ``pydoc`` is the documentation of
    Python that comes with every interpreter, ``pydoc:first`` and ``pydoc:second`` its halves.

    Raises:
        LoadError: if the text does not exist, or cannot be read.
    """
    name = str(text)
    if name in PYDOC:
        return _pydoc(name)
    part = _RANGE.fullmatch(name)
    if part is None or Path(name).exists():
        return _read(Path(name), None)
    return _read(Path(part["path"]), (int(part["start"] or 0), int(part["end"]) if part["end"] else None))


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
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _require(tokens: int, count: int, length: int) -> None:
    if count < 1 or length < 2:
        raise CalibrationError(f"got {count} windows of {length} tokens, expected at least 1 of at least 2")
    if tokens == 0:
        raise CalibrationError(f"the text is empty; expected at least {count * length:,} tokens: name another text")
    if tokens < count * length:
        fewer = f"no more than {tokens // length} windows" if tokens >= length else "shorter windows"
        raise CalibrationError(
            f"the text has {tokens:,} tokens, but {count} x {length} = {count * length:,} are needed; "
            f"name a longer text, or request {fewer}"
        )


def _pydoc(name: str) -> str:
    """Topics of pydoc in alphabetical order; the first half ends with the topic that contains the middle."""
    documents = [topics[key] for key in sorted(topics)]
    half, first = sum(map(len, documents)) / 2, 0
    before = 0
    while before < half:
        before += len(documents[first])
        first += 1
    halves = {"pydoc": documents, "pydoc:first": documents[:first], "pydoc:second": documents[first:]}
    return SEPARATOR.join(halves[name])


def _read(path: Path, part: tuple[int, int | None] | None) -> str:
    if not path.is_file():
        near = "is a folder" if path.is_dir() else "does not exist"
        raise LoadError(f"the text {path} {near}; expected {TEXTS}")
    lines = path.name.removesuffix(".gz").endswith(".jsonl")
    if part is not None and not lines:
        raise LoadError(f"{path} is one text, so it has no documents {part[0]} to {part[1]}; only a .jsonl file has")
    try:
        content = _unpacked(path).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as fault:
        raise LoadError(f"cannot read the text {path}{because(fault)}; expected {TEXTS}, in UTF-8") from fault
    return SEPARATOR.join(_part(path, list(_documents(path, content)), part)) if lines else content


def _unpacked(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _documents(path: Path, content: str) -> Iterator[str]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield _text(json.loads(line))
        except (ValueError, TypeError, KeyError, RecursionError) as fault:
            raise LoadError(f'{path}, line {number}: got {line[:60]!r}, expected an object with a "text"') from fault


def _text(document: Any) -> str:
    text = document["text"]
    if not isinstance(text, str):
        raise TypeError(text)
    return text


def _part(path: Path, documents: list[str], part: tuple[int, int | None] | None) -> list[str]:
    start, end = part or (0, None)
    end = len(documents) if end is None else end
    if part is not None and not start < end <= len(documents):
        raise LoadError(f"{path} has {len(documents)} documents; [{start}:{end}] is no part of them")
    return documents[start:end]
