"""WordPiece: a word is split from its start into the longest known pieces."""

from collections.abc import Mapping
from typing import Any

from graphprune.vocabulary.tokenizer_kind import TokenizerKind, ordered


class WordPieces(TokenizerKind):
    """Model of type WordPiece: pieces inside a word begin with a mark."""

    def numbers(self) -> dict[str, int]:
        """Identifiers of all pieces."""
        return dict(self.model["vocab"])

    def letters(self, token: str) -> list[str]:
        """A piece for every character; those after the first are inside the word."""
        mark = self.model.get("continuing_subword_prefix") or ""
        start = mark if mark and token.startswith(mark) and token != mark else ""
        return [f"{mark if i else start}{letter}" for i, letter in enumerate(token[len(start) :])]

    def reduced(self, numbers: Mapping[str, int]) -> dict[str, Any]:
        """The model with these pieces."""
        return {**self.model, "vocab": {token: numbers[token] for token in ordered(numbers)}}
