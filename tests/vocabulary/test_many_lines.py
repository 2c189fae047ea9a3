"""Ten thousand lines in several scripts are written by tokenizers with fewer tokens as before."""

import random

import pytest

from tests.vocabulary.small_tokenizers import KINDS, OTHER, TEXTS, tokenizer_of
from tests.vocabulary.test_tokenizers import trimmed

LINES = 10_000
#: First and last letters of scripts: Latin, Greek, Cyrillic, Arabic, Devanagari, Thai, Hangul, kana, Han, emoji.
SCRIPTS = (
    (0x20, 0x17F), (0x391, 0x3C9), (0x410, 0x44F), (0x621, 0x64A), (0x905, 0x939), (0xE01, 0xE2E), (0xAC00, 0xD7A3),
    (0x3041, 0x30FE), (0x4E00, 0x9FA5), (0x1F600, 0x1F64F),
)  # fmt: skip


def lines() -> list[str]:
    """Lines of words of the corpora, and of random words of every script."""
    generator = random.Random(0)
    words = [word for text in TEXTS for word in text.split()]

    def word() -> str:
        if generator.random() < 0.5:
            return generator.choice(words)
        first, last = generator.choice(SCRIPTS)
        return "".join(chr(generator.randint(first, last)) for _ in range(generator.randint(1, 6)))

    return [" ".join(word() for _ in range(generator.randint(1, 12))) for _ in range(LINES)]


@pytest.mark.slow
@pytest.mark.parametrize("texts", [TEXTS[:4], OTHER], ids=["one script", "several scripts"])
@pytest.mark.parametrize("kind", KINDS)
def test_lines_in_several_scripts_are_written_as_before(kind: str, texts: tuple[str, ...]) -> None:
    small, retained = trimmed(kind, texts=texts)
    old, every = tokenizer_of(kind).backend_tokenizer, lines()
    before, after = ([e.ids for e in each.encode_batch(every)] for each in (old, small))
    assert old.decode_batch(before) == small.decode_batch(after)
    same = [(a, b) for a, b in zip(before, after, strict=True) if all(number in retained for number in a)]
    assert len(same) > LINES / 1000
    assert all([retained[number] for number in a] == b for a, b in same)
