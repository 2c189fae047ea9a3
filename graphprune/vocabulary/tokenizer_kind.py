"""Contract of a kind of tokenizer model, as the JSON of the library tokenizers describes it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Set
from typing import Any

#: Tokens of the bytes of a character that has no token of its own.
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


class TokenizerKind(ABC):
    """Model of a tokenizer: its tokens, and how some of them are spelled by others.

    Args:
        model: The object ``model`` of a tokenizer.json.
        apart: Tokens that text is searched for before it is split, which are not spelled by others.
    """

    def __init__(self, model: Mapping[str, Any], apart: Set[str]) -> None:
        self.model, self.apart = model, apart
        self.ids = self.numbers()

    @property
    def has_bytes(self) -> bool:
        """Whether every character without a token is spelled by bytes."""
        return bool(self.model.get("byte_fallback")) and all(byte in self.ids for byte in BYTES)

    @property
    def unknown(self) -> set[str]:
        """The token of what cannot be spelled, if there is one."""
        token = self.model.get("unk_token")
        return {str(token)} & self.ids.keys()

    @abstractmethod
    def numbers(self) -> dict[str, int]:
        """Identifiers of all tokens."""

    @abstractmethod
    def letters(self, token: str) -> list[str]:
        """The shortest tokens, of a character each, that spell a token; they need not exist."""

    def parts(self, token: str) -> set[str]:
        """Tokens without which the tokenizer does not arrive at this one."""
        return set()

    @abstractmethod
    def reduced(self, numbers: Mapping[str, int]) -> dict[str, Any]:
        """The model with these tokens alone, under these identifiers, which have the order of the old ones."""

    def spelling(self) -> set[str]:
        """Tokens without which some text could not be spelled any more."""
        if self.has_bytes:
            return {*BYTES, *self.unknown}
        single = {token for token in self.ids if len(self.letters(token)) == 1}
        return single | self.unknown | self.unspelled(single)

    def unspelled(self, single: Set[str]) -> set[str]:
        """Tokens with a character that has no token of its own, so that no others spell them."""
        return {t for t in self.ids if t not in self.apart and not {*self.letters(t)} <= single}


def ordered(ids: Mapping[str, int]) -> Iterator[str]:
    """Tokens in the order of their identifiers."""
    return iter(sorted(ids, key=ids.__getitem__))
