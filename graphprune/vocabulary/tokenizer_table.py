"""Tokenizers as a tokenizer.json describes them: their tokens, and the same tokenizer with fewer."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from graphprune.errors import LoadError, because
from graphprune.vocabulary.byte_pairs import BytePairs
from graphprune.vocabulary.tokenizer_kind import TokenizerKind
from graphprune.vocabulary.unigram_pieces import UnigramPieces
from graphprune.vocabulary.word_pieces import WordPieces

FILE = "tokenizer.json"
KINDS: Mapping[str, type[TokenizerKind]] = {"BPE": BytePairs, "WordPiece": WordPieces, "Unigram": UnigramPieces}
STEPS = ("normalizer", "pre_tokenizer", "decoder")


@dataclass(frozen=True)
class TokenizerTable:
    """Content of a tokenizer.json; `name` is where it was read, for messages."""

    table: Mapping[str, Any]
    name: str

    @classmethod
    def of(cls, folder: Path, tokenizer: Any) -> "TokenizerTable":
        """The tokenizer of a folder: its tokenizer.json, or what transformers makes of its other files.

        Raises:
            LoadError: if it is Python code, of another kind, or its files disagree.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise LoadError(
                f"{folder}: its tokenizer, {type(tokenizer).__name__}, is Python code, whose tokens cannot be removed; "
                f"save it in the form of the library tokenizers, as {FILE}"
            )
        path = folder / FILE
        try:
            text = path.read_text(encoding="utf-8") if path.is_file() else backend.to_str()
            table = cls(json.loads(text), str(path if path.is_file() else folder))
            table.require_known()
            table.require_equal(tokenizer.get_vocab(), type(tokenizer).__name__)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
            raise LoadError(f"{path} describes no tokenizer{because(fault)}; copy the file again") from fault
        return table

    def require_known(self) -> None:
        """Check that the model is of a kind that can lose tokens.

        Raises:
            LoadError: if it is not.
        """
        kind = self.table["model"].get("type")
        if kind not in KINDS:
            raise LoadError(
                f"{self.name}: the tokenizer is of type {kind}, expected one of {', '.join(KINDS)}: in others, a word "
                "without a token of its own is unknown"
            )

    def require_equal(self, ids: Mapping[str, int], other: str) -> None:
        """Check that another description has the same tokens under the same identifiers.

        Raises:
            LoadError: if one differs.
        """
        differing = sorted(token for token in ids.keys() | self.ids.keys() if ids.get(token) != self.ids.get(token))
        if differing:
            first = differing[0]
            raise LoadError(
                f"{self.name} and {other} disagree on {len(differing)} tokens: {first!r} is {self.ids.get(first)} in "
                f"the first and {ids.get(first)} in the second; remove the one that the model was not trained with"
            )

    @cached_property
    def kind(self) -> TokenizerKind:
        """The model that spells text by tokens."""
        model = self.table["model"]
        return KINDS[model["type"]](model, frozenset(self.added))

    @cached_property
    def added(self) -> dict[str, int]:
        """Tokens that text is searched for before it is split, special ones among them."""
        return {entry["content"]: entry["id"] for entry in self.table.get("added_tokens") or ()}

    @cached_property
    def ids(self) -> dict[str, int]:
        """Identifiers of all tokens."""
        return {**self.kind.ids, **self.added}

    def required(self) -> set[str]:
        """Tokens that must be retained: special and added ones, and those that spell all others."""
        literals = {text for name in STEPS for text in _texts(self.table.get(name))}
        named = {token for token, _ in _special(self.table.get("post_processor"))}
        return {*self.added, *self.kind.spelling(), *(literals & self.ids.keys()), *(named & self.ids.keys())}

    def reduced(self, retained: Mapping[int, int]) -> dict[str, Any]:
        """The table with the retained tokens, under their new identifiers."""
        numbers = {token: retained[i] for token, i in self.kind.ids.items() if i in retained}
        added = [{**entry, "id": retained[entry["id"]]} for entry in self.table.get("added_tokens") or ()]
        table = {**self.table, "model": self.kind.reduced(numbers), "added_tokens": added}
        if self.table.get("post_processor"):
            table["post_processor"] = _renumbered(self.table["post_processor"], retained)
        if padding := self.table.get("padding"):
            table["padding"] = {**padding, "pad_id": retained.get(padding.get("pad_id"), padding.get("pad_id"))}
        return table


def _texts(value: Any) -> Iterator[str]:
    """Text literals inside an object, such as the mark of a space."""
    if isinstance(value, str):
        yield value
        return
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for item in items:
        yield from _texts(item)


def _special(step: Any) -> Iterator[tuple[str, int]]:
    """Tokens that a post-processor adds to texts."""
    for part in (step or {}).get("processors", ()):
        yield from _special(part)
    for entry in (step or {}).get("special_tokens", {}).values():
        yield from zip(entry["tokens"], entry["ids"], strict=True)
    for name in ("sep", "cls"):
        if isinstance(pair := (step or {}).get(name), list):
            yield pair[0], pair[1]


def _renumbered(step: Mapping[str, Any], retained: Mapping[int, int]) -> dict[str, Any]:
    """A post-processor with new identifiers."""
    new = dict(step)
    if "processors" in step:
        new["processors"] = [_renumbered(part, retained) for part in step["processors"]]
    if "special_tokens" in step:
        new["special_tokens"] = {
            name: {**entry, "ids": [retained[i] for i in entry["ids"]]}
            for name, entry in step["special_tokens"].items()
        }
    for name in ("sep", "cls"):
        if isinstance(step.get(name), list):
            new[name] = [step[name][0], retained[step[name][1]]]
    return new
