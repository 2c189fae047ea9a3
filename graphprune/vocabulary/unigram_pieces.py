"""Unigram: the most likely way to spell a text by pieces, each with a probability of its own."""

from collections.abc import Mapping
from typing import Any

from graphprune.vocabulary.tokenizer_kind import TokenizerKind


class UnigramPieces(TokenizerKind):
    """Model of type Unigram, a list of pieces with the logarithms of their probabilities."""

    def numbers(self) -> dict[str, int]:
        """Identifiers of all pieces: their places in the list, of a repeated piece the last one."""
        return {piece: i for i, (piece, _) in enumerate(self.model["vocab"])}

    @property
    def unknown(self) -> set[str]:
        """The piece of what cannot be spelled."""
        at = self.model.get("unk_id")
        return set() if at is None else {self.model["vocab"][at][0]}

    def letters(self, token: str) -> list[str]:
        """The characters."""
        return list(token)

    def reduced(self, numbers: Mapping[str, int]) -> dict[str, Any]:
        """The model with these pieces in their order, each once."""
        every = enumerate(self.model["vocab"])
        model = {**self.model, "vocab": [e for i, e in every if e[0] in numbers and self.ids[e[0]] == i]}
        unknown = self.unknown
        return {**model, "unk_id": numbers[min(unknown)]} if unknown else model
