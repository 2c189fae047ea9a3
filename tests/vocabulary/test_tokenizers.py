"""Tokenizers with fewer tokens write every text that the original writes."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from graphprune.errors import CalibrationError, LoadError, OptionError
from graphprune.vocabulary.scripts import of_scripts
from graphprune.vocabulary.token_selection import Amount, TokenSelection, counted
from graphprune.vocabulary.tokenizer_table import TokenizerTable
from tests.vocabulary.small_tokenizers import ENGLISH, KINDS, TEXTS, tokenizer_of

ALL = Amount(align=1)
CASES = {kind: tokenizer_of(kind) for kind in KINDS}
LETTERS = "".join(sorted(set("".join(TEXTS))))


def selection(kind: str, texts: tuple[str, ...] = ENGLISH) -> TokenSelection:
    """The tokens of a kind by some texts."""
    table = TokenizerTable(json.loads(KINDS[kind]()), kind)
    return TokenSelection(table, counted(CASES[kind], texts), frozenset(table.required()), 1 << 20)


def trimmed(kind: str, amount: Amount = ALL, texts: tuple[str, ...] = ENGLISH) -> tuple[Any, dict[int, int]]:
    """A tokenizer with the tokens of some texts, and its new identifiers by the old ones."""
    chosen = selection(kind, texts)
    retained = chosen.chosen(amount)
    return Tokenizer.from_str(json.dumps(chosen.table.reduced(retained))), retained


SMALL = {kind: trimmed(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_renumbered_in_their_order(kind: str) -> None:
    small, retained = SMALL[kind]
    old = CASES[kind].get_vocab()
    assert len(retained) < 0.95 * len(old)
    assert {token: retained[i] for token, i in old.items() if i in retained} == small.get_vocab()
    assert sorted(retained.values()) == list(range(len(retained)))
    assert sorted(retained, key=retained.__getitem__) == sorted(retained)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_the_corpus_keep_their_tokens(kind: str) -> None:
    small, retained = SMALL[kind]
    for text in ENGLISH:
        ids = CASES[kind](text)["input_ids"]
        assert small.encode(text).ids == [retained[i] for i in ids]


@settings(max_examples=60, deadline=None, database=None)
@given(text=st.text(st.one_of(st.sampled_from(LETTERS), st.characters(exclude_categories=["Cs"])), max_size=40))
@pytest.mark.parametrize("kind", KINDS)
def test_every_text_is_written_as_before(kind: str, text: str) -> None:
    small, _ = SMALL[kind]
    old = CASES[kind].backend_tokenizer
    assert old.decode(old.encode(text).ids) == small.decode(small.encode(text).ids)


@settings(max_examples=40, deadline=None, database=None)
@given(text=st.text(st.sampled_from(LETTERS), max_size=60))
@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_retained_tokens_have_the_same_tokens(kind: str, text: str) -> None:
    small, retained = SMALL[kind]
    ids = CASES[kind].backend_tokenizer.encode(text).ids
    if all(number in retained for number in ids):
        assert small.encode(text).ids == [retained[number] for number in ids]


@pytest.mark.parametrize("kind", ("byte-level", "byte fallback"))
def test_merges_end_in_retained_tokens(kind: str) -> None:
    small, _ = SMALL[kind]
    model = json.loads(small.to_str())["model"]
    assert 0 < len(model["merges"]) < len(json.loads(KINDS[kind]())["model"]["merges"])
    for first, second in model["merges"]:
        assert {first, second, first + second} <= model["vocab"].keys()


def test_whole_words_bring_the_tokens_that_they_are_merged_from() -> None:
    chosen = selection("byte-level", (" token",) * 3)
    *_, word = CASES["byte-level"].backend_tokenizer.encode(" token").tokens
    parts = chosen.table.kind.parts(word)
    assert parts > {"t", "o"}
    tokens = {token for token, i in chosen.table.ids.items() if i in chosen.chosen(Amount(coverage=0.5, align=1))}
    assert {word, *parts} <= tokens


def test_a_number_of_tokens_is_met_with_the_most_frequent_ones() -> None:
    fixed = len(selection("byte fallback").required)
    small, retained = trimmed("byte fallback", Amount(tokens=fixed + 20, align=1))
    assert len(retained) == small.get_vocab_size() == fixed + 20
    assert len(trimmed("byte fallback", Amount(tokens=fixed + 20, align=32))[1]) % 32 == 0
    coverage = [
        selection("byte fallback").coverage(trimmed("byte fallback", Amount(tokens=fixed + n, align=1))[1])
        for n in (5, 20, 40)
    ]
    assert coverage == sorted(coverage) and coverage[0] < coverage[-1] < 1


def test_expected_tokens_are_ranked_among_those_of_the_corpus() -> None:
    some = selection("byte fallback")
    ids = CASES["byte fallback"].get_vocab()
    number = max(i for token, i in ids.items() if i not in some.counts and token not in some.required)
    few = Amount(tokens=len(some.required) + 40, align=1)  # a token with all that it is merged from
    assert number not in some.chosen(few)
    assert number in replace(some, expected={number: 1e6}).chosen(few)


def test_scripts_have_tokens_with_letters_of_theirs_alone() -> None:
    tokens = {"the", "▁Και", "лиса", "狐", "a1", "12", "!", "aЖ"}
    assert of_scripts(tokens, ["Latin", "Greek"], str) == {"the", "▁Και", "a1"}
    with pytest.raises(OptionError, match="script"):
        of_scripts(tokens, ["Klingon"], str)


@pytest.mark.parametrize(
    ("amount", "error", "message"),
    [
        (Amount(tokens=100), OptionError, r"must be retained, more than the 100 requested"),
        (Amount(tokens=10_000), OptionError, r"has [\d,]+ tokens; request fewer"),
        (Amount(tokens=415, align=1), CalibrationError, r"fewer than the 415 requested"),
    ],
)
def test_impossible_numbers_of_tokens_are_refused(amount: Amount, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        selection("byte-level", ("abc",)).chosen(amount)


def test_an_empty_corpus_is_refused() -> None:
    with pytest.raises(CalibrationError, match="corpus is empty"):
        counted(CASES["byte-level"], ["", ""])


def test_a_vocabulary_of_words_is_refused() -> None:
    table = {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
    with pytest.raises(LoadError, match="WordLevel, expected one of BPE"):
        TokenizerTable(table, "tokenizer.json").require_known()


def test_tokens_without_their_characters_are_retained() -> None:
    table = {
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "vocab": {t: i for i, t in enumerate(("[UNK]", "a", "b", "##b", "ab", "ac", "abb"))},
        }
    }  # fmt: skip
    assert TokenizerTable(table, "tokenizer.json").required() == {"[UNK]", "a", "b", "##b", "ac"}
