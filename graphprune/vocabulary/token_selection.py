"""Choice of the tokens that are retained: by their frequency in a corpus, with the tokens they are made of."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from graphprune.errors import CalibrationError, OptionError
from graphprune.support.tokenizing import tokenizing
from graphprune.vocabulary.tokenizer_table import TokenizerTable

BATCH = 64  # documents that are split at once


@dataclass(frozen=True)
class Amount:
    """Number of tokens to retain, or share of the tokens of the corpus that remain whole; multiples of `align`."""

    tokens: int | None = None
    coverage: float = 0.9999
    align: int = 64


def counted(tokenizer: Any, texts: Iterable[str]) -> Counter[int]:
    """Counts of the tokens of texts, by their identifiers.

    Raises:
        CalibrationError: if there is no token, or the tokenizer cannot read a text.
    """
    counts: Counter[int] = Counter()
    for batch in _batches(texts):
        with tokenizing():
            encodings = tokenizer.backend_tokenizer.encode_batch(batch, add_special_tokens=False)
        for encoding in encodings:
            counts.update(encoding.ids)
    if not counts:
        raise CalibrationError("the corpus is empty; name texts in the languages that the model has to know")
    return counts


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch = list[str]()
    for text in texts:
        batch.append(text)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass(frozen=True)
class TokenSelection:
    """Tokens that may be retained, with those that have to be.

    Args:
        table: The tokenizer.
        counts: How often each token occurs, by its identifier.
        required: Tokens that are retained in any case.
        rows: Rows of the model; a token beyond them, as of an image, is retained and has none.
        expected: How often each token is expected in such a corpus, which counts as much as its occurrences.
    """

    table: TokenizerTable
    counts: Mapping[int, int]
    required: frozenset[str]
    rows: int
    expected: Mapping[int, float] = field(default_factory=dict)

    def chosen(self, amount: Amount) -> dict[int, int]:
        """New identifiers by the old ones, in the same order.

        Raises:
            OptionError: if there are more required tokens than requested, or fewer tokens in the tokenizer.
            CalibrationError: if the corpus has fewer tokens than requested.
        """
        retained = set(self.required)
        for token in self.required:
            retained |= self.table.kind.parts(token)
        ranked = [token for token in self._ranked() if token not in retained]
        size = self._size(retained, ranked, amount)
        retained |= {*ranked[: size - len(retained)]}
        self._fill(retained, size)
        if len(retained) == len(self.table.ids):
            raise OptionError(
                f"all {len(retained):,} tokens of {self.table.name} would be retained, so there is nothing to trim; "
                "request fewer tokens, or a lower coverage"
            )
        old = sorted(self.table.ids[token] for token in retained)
        return {number: i for i, number in enumerate(old)}

    def _ranked(self) -> list[str]:
        """Tokens of the corpus, the most frequent first; each counts with all that are made of it."""
        text = {number: token for token, number in self.table.ids.items()}
        weights: dict[str, float] = defaultdict(float)
        for number in self.counts.keys() | (self.expected.keys() & text.keys()):
            count = self.counts.get(number, 0) + self.expected.get(number, 0.0)
            for token in (text[number], *self.table.kind.parts(text[number])):
                weights[token] += count
        return sorted(weights, key=lambda token: (-weights[token], len(token), self.table.ids[token]))

    def _size(self, retained: set[str], ranked: list[str], amount: Amount) -> int:
        """Number of tokens to retain."""
        if amount.tokens is None:
            return min(
                self._aligned(self._covering(retained, ranked, amount.coverage), amount.align), len(self.table.ids)
            )
        size = self._aligned(amount.tokens, amount.align)
        if size < len(retained):
            raise OptionError(
                f"{len(retained):,} tokens must be retained, more than the {amount.tokens:,} requested: special and "
                "added ones, those that configurations name, and those without which a text could not be spelled"
            )
        if size >= len(self.table.ids):
            raise OptionError(f"{self.table.name} has {len(self.table.ids):,} tokens; request fewer than that")
        if len(retained) + len(ranked) < amount.tokens:
            raise CalibrationError(
                f"the corpus has {len(self.counts):,} different tokens, with those that must be retained "
                f"{len(retained) + len(ranked):,}: fewer than the {amount.tokens:,} requested. Add texts, or request "
                "fewer tokens"
            )
        return size

    def _covering(self, retained: set[str], ranked: list[str], coverage: float) -> int:
        """Number of tokens that cover a share of the corpus."""
        total = sum(self.counts.values())
        covered = sum(map(self._count, retained))
        for i, token in enumerate(ranked):
            if covered >= coverage * total:
                return len(retained) + i
            covered += self._count(token)
        return len(retained) + len(ranked)

    def _count(self, token: str) -> int:
        return self.counts.get(self.table.ids[token], 0)

    def _fill(self, retained: set[str], size: int) -> None:
        """Add tokens that the corpus does not have, each with its parts, up to a number of tokens."""
        for token in sorted(self.table.kind.ids, key=self.table.kind.ids.__getitem__):
            if len(retained) >= size:
                return
            more = {token, *self.table.kind.parts(token)} - retained
            if len(retained) + len(more) <= size:
                retained |= more

    def coverage(self, retained: Mapping[int, int]) -> float:
        """Share of the tokens of the corpus that remain whole."""
        return sum(count for number, count in self.counts.items() if number in retained) / sum(self.counts.values())

    def _aligned(self, count: int, align: int) -> int:
        """Number of tokens for which the number of rows is a multiple."""
        beyond = sum(number >= self.rows for number in self.table.ids.values())
        return beyond - (beyond - count) // align * align
