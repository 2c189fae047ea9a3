"""Texts, their windows, and what is said where they do not suffice."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from graphprune.errors import CalibrationError, LoadError
from graphprune.statistics import texts
from graphprune.statistics.data_files import PYDOC
from graphprune.vocabulary.token_selection import counted


class Characters:
    """A tokenizer whose tokens are characters."""

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        assert options == {"add_special_tokens": False, "verbose": False}
        return {"input_ids": [ord(character) for character in text]}


TOKENIZER = Characters()


def test_plain_and_packed_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("naïve\n", encoding="utf-8")
    (tmp_path / "a.raw.gz").write_bytes(gzip.compress("naïve\n".encode()))
    assert texts.read(tmp_path / "a.txt") == texts.read(tmp_path / "a.raw.gz") == "naïve\n"


@pytest.mark.parametrize(
    ("part", "expected"),
    [("", "zero\n\none\n\ntwo"), ("[0:2]", "zero\n\none"), ("[1:]", "one\n\ntwo"), ("[:1]", "zero")],
)
def test_documents(tmp_path: Path, part: str, expected: str) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in ("zero", "one", "two"))
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert texts.read(f"{tmp_path}/a.jsonl{part}") == texts.read(f"{tmp_path}/a.jsonl.gz{part}") == expected


def test_a_document_may_hold_other_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\u2028b"}\n', encoding="utf-8")
    assert texts.read(tmp_path / "a.jsonl") == "a\u2028b"


def test_the_documentation_of_python_has_two_halves() -> None:
    whole, first, second = (texts.read(name) for name in PYDOC)
    assert first + texts.SEPARATOR + second == whole
    assert abs(len(first) - len(second)) < len(whole) / 5


def test_windows_are_consecutive() -> None:
    found = texts.windows(TOKENIZER, "abcdefgh", 3)
    assert found.tolist() == [[97, 98, 99], [100, 101, 102]]


def test_samples_are_drawn_by_seed_without_replacement() -> None:
    text = "".join(chr(i) for i in range(100, 160))
    drawn = [texts.samples(TOKENIZER, text, 12, 5, seed) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert sorted(drawn[0].flatten().tolist()) == list(range(100, 160))
    assert torch.equal(texts.samples(TOKENIZER, text, 3, 5, 0), drawn[0][:3])


@pytest.mark.parametrize(
    ("text", "count", "length", "match"),
    [
        ("", 4, 8, r"the text is empty; expected at least 32 tokens: name another text"),
        ("x" * 20, 4, 8, r"has 20 tokens, but 4 x 8 = 32 are needed; .* request no more than 2 samples"),
        ("x" * 5, 4, 8, r"has 5 tokens, but 4 x 8 = 32 are needed; .* request shorter windows"),
        ("x" * 50, 0, 8, r"got 0 windows of 8 tokens, expected at least 1"),
        ("x" * 50, 4, 1, r"got 4 windows of 1 tokens, expected at least 1 of at least 2"),
    ],
)
def test_too_short(text: str, count: int, length: int, match: str) -> None:
    with pytest.raises(CalibrationError, match=match):
        texts.samples(TOKENIZER, text, count, length, 0)


def test_windows_of_too_short_a_text() -> None:
    with pytest.raises(CalibrationError, match=r"has 3 tokens, but 1 x 8 = 8 are needed"):
        texts.windows(TOKENIZER, "abc", 8)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("missing.txt", None, r"missing\.txt does not exist; expected a \.txt or \.jsonl file.*pydoc:second"),
        (".", None, r"is a folder; expected a \.txt"),
        ("a.gz", b"no gzip", r"cannot read the text .*a\.gz \(reason: Not a gzipped file"),
        ("a.gz", gzip.compress(b"x" * 1000, mtime=0)[:-12], r"cannot read the text .*a\.gz"),
        ("a.txt", b"\xff\xfe", r"cannot read the text .*a\.txt \(reason: byte 0 is not UTF-8\)"),
        ("a.txt[0:5]", b"", r"a\.txt is one text, so it has no documents 0 to 5; only a \.jsonl file has"),
        ("a.jsonl", b'{"text": "a"}\n{"story": 1}\n', r"a\.jsonl, line 2: got .* expected an object with a \"text\""),
        ("a.jsonl", b'{"text": 3}', r"line 1: got .* expected an object with a \"text\""),
        ("a.jsonl", b"[1]", r"line 1: got .* expected an object with a \"text\""),
        ("a.jsonl", b"{", r"line 1: got '{', expected an object with a \"text\""),
        ("a.jsonl[0:5]", b'{"text": "a"}\n', r"has 1 documents; \[0:5\] is no part of them"),
        ("a.jsonl[1:1]", b'{"text": "a"}\n', r"a.jsonl\[1:1\] is empty: the end must be greater"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, match: str) -> None:
    if content is not None:
        (tmp_path / name.split("[")[0]).write_bytes(content)
    with pytest.raises(LoadError, match=match):
        texts.read(f"{tmp_path}/{name}")


def test_a_text_that_the_tokenizer_cannot_read(tmp_path: Path) -> None:
    model = models.Unigram([("a", -1.0), ("b", -2.0)])  # no token for unknown characters
    kind: Any = PreTrainedTokenizerFast
    tokenizer = kind(tokenizer_object=Tokenizer(model))
    assert texts.windows(tokenizer, "abab", 2).tolist() == [[0, 1], [0, 1]]
    with pytest.raises(CalibrationError, match=r"the tokenizer cannot read a text \(reason: .*\); name a text in its"):
        texts.windows(tokenizer, "abc", 2)
    with pytest.raises(CalibrationError, match=r"the tokenizer cannot read a text"):
        counted(tokenizer, ["abc"])
