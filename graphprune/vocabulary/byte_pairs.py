"""Byte-pair encoding: pairs of tokens are merged in the order of a list, from characters or bytes."""

from collections.abc import Mapping, Set
from functools import cached_property
from itertools import pairwise
from typing import Any

from graphprune.vocabulary.tokenizer_kind import TokenizerKind, ordered

Pair = tuple[str, str]


class BytePairs(TokenizerKind):
    """Model of type BPE, at the level of bytes, or of characters with or without bytes for unknown ones."""

    def numbers(self) -> dict[str, int]:
        """Identifiers of all tokens."""
        return dict(self.model["vocab"])

    @property
    def _prefix(self) -> str:
        return self.model.get("continuing_subword_prefix") or ""

    @property
    def _suffix(self) -> str:
        return self.model.get("end_of_word_suffix") or ""

    def letters(self, token: str) -> list[str]:
        """A token for every character, with the marks of the inside and of the end of a word."""
        start = self._prefix if self._prefix and token.startswith(self._prefix) else ""
        end = self._suffix if self._suffix and token.endswith(self._suffix) else ""
        bare = token[len(start) : len(token) - len(end)]
        letters = [f"{self._prefix if i else start}{letter}" for i, letter in enumerate(bare)]
        return [*letters[:-1], f"{letters[-1]}{end}"] if letters else [token]

    def unspelled(self, single: Set[str]) -> set[str]:
        """None: merges start from characters, so that one without a token is unknown already."""
        return set()

    @cached_property
    def _pairs(self) -> list[Pair]:
        return [_pair(merge) for merge in self.model["merges"]]

    @cached_property
    def _ranks(self) -> dict[Pair, int]:
        return {pair: rank for rank, pair in enumerate(self._pairs)}

    def _product(self, pair: Pair) -> str:
        return pair[0] + pair[1][len(self._prefix) :]

    def parts(self, token: str) -> set[str]:
        """Tokens on the way from characters to this one.

        The merges inside a token depend on nothing outside of it: they are the same in every text.
        """
        symbols = self._symbols(token)
        made = set(symbols)
        while len(symbols) > 1:
            pairs = list(pairwise(symbols))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                return set()  # no merges lead to it
            symbols = _merged(symbols, best, self._product(best))
            made.add(self._product(best))
        return made - {token} if symbols == [token] else set()

    def _symbols(self, token: str) -> list[str]:
        """Tokens from which merging starts: characters, or their bytes."""
        symbols = list[str]()
        for letter in self.letters(token):
            known = letter in self.ids or not self.has_bytes
            symbols += [letter] if known else [f"<0x{byte:02X}>" for byte in letter.encode()]
        return symbols

    def reduced(self, numbers: Mapping[str, int]) -> dict[str, Any]:
        """The model with these tokens, and the merges whose parts and product are among them."""
        merges = [
            merge
            for merge, pair in zip(self.model["merges"], self._pairs, strict=True)
            if pair[0] in numbers and pair[1] in numbers and self._product(pair) in numbers
        ]
        return {**self.model, "vocab": {token: numbers[token] for token in ordered(numbers)}, "merges": merges}


def _pair(merge: str | list[str]) -> Pair:
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return first, second


def _merged(symbols: list[str], pair: Pair, product: str) -> list[str]:
    """Symbols with the first occurrence of a pair merged."""
    at = next(i for i in range(len(symbols) - 1) if (symbols[i], symbols[i + 1]) == pair)
    return [*symbols[:at], product, *symbols[at + 2 :]]
