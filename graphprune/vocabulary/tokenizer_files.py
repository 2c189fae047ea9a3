"""Files of a tokenizer in a folder: checked against each other, and written with fewer tokens."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graphprune.errors import LoadError, because
from graphprune.huggingface.model_folder import read_json
from graphprune.vocabulary import sentencepiece_model
from graphprune.vocabulary.tokenizer_kind import ordered
from graphprune.vocabulary.tokenizer_table import FILE, TokenizerTable

log = logging.getLogger(__name__)

CONFIG, ADDED, MERGES, WORDS, PIECES = (
    "tokenizer_config.json", "added_tokens.json", "merges.txt", "vocab.json", "vocab.txt"
)  # fmt: skip
_SENTENCEPIECE = "*.model"
_OTHER = ("*.tiktoken", "tekken.json", "vocab.bpe", "*.spm", "*.bpe.codes", "bpe.codes")


def require_agreement(folder: Path, table: TokenizerTable) -> None:
    """Check that all files that list the tokens of a folder do so under the same identifiers.

    Raises:
        LoadError: if two disagree, or one cannot be read.
    """
    for name, read in {WORDS: read_json, ADDED: read_json, PIECES: _lines}.items():
        path = folder / name
        if path.is_file() and table.name != str(path):
            listed = read(path)
            table.require_equal({**table.ids, **listed}, str(path))
    for path in sorted(folder.glob(_SENTENCEPIECE)):
        if strange := [text for text in _pieces(path) if text not in table.ids]:
            raise LoadError(
                f"{table.name} and {path} disagree: the second has {len(strange)} pieces that the first lacks, the "
                f"first of them {strange[0]!r}; remove the one that the model was not trained with"
            )


def _pieces(path: Path) -> list[str]:
    """Pieces of a SentencePiece file; none of a file of another kind, which is left out later."""
    try:
        return sentencepiece_model.texts(path.read_bytes())
    except (ValueError, StopIteration):
        return []


def _lines(path: Path) -> dict[str, int]:
    """Identifiers of tokens that are listed one a line."""
    try:
        text = path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as fault:
        raise LoadError(f"cannot read {path}{because(fault)}; copy the file again") from fault
    return {line.rstrip("\r"): i for i, line in enumerate(text.split("\n"))}


def write(folder: Path, table: TokenizerTable, retained: Mapping[int, int]) -> list[str]:
    """Write the tokenizer with the retained tokens over the files of the old one; return notes.

    Files of kinds that cannot be written are removed, with a note on each.
    """
    reduced = table.reduced(retained)
    _write_json(folder / FILE, reduced, indent=None)
    _rewrite_config(folder / CONFIG, retained)
    numbers = {token: retained[i] for token, i in table.ids.items() if i in retained}
    for name in (WORDS, ADDED):
        if (folder / name).is_file():
            _write_json(
                folder / name, {token: numbers[token] for token in read_json(folder / name) if token in numbers}
            )
    if (folder / PIECES).is_file():
        own = {token: numbers[token] for token in _lines(folder / PIECES) if token in numbers}
        (folder / PIECES).write_text("".join(f"{token}\n" for token in ordered(own)), encoding="utf-8")
    if (folder / MERGES).is_file():
        pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in reduced["model"].get("merges", ()))
        (folder / MERGES).write_text("".join(["#version: 0.2\n", *(f"{pair}\n" for pair in pairs)]), encoding="utf-8")
    return [*_rewrite_pieces(folder, numbers), *_remove_others(folder)]


def _write_json(path: Path, table: Any, indent: int | None = 2) -> None:
    path.write_text(json.dumps(table, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")


def _rewrite_config(path: Path, retained: Mapping[int, int]) -> None:
    """Renumber the added tokens in the settings of a tokenizer."""
    table = read_json(path) if path.is_file() else {}
    if listed := table.get("added_tokens_decoder"):
        known = {int(i): entry for i, entry in listed.items()}
        table["added_tokens_decoder"] = {str(retained[i]): entry for i, entry in known.items() if i in retained}
        _write_json(path, table)


def _rewrite_pieces(folder: Path, numbers: Mapping[str, int]) -> list[str]:
    """Rewrite SentencePiece files, whose pieces have the names of tokens."""
    return _each(folder, _SENTENCEPIECE, lambda content: sentencepiece_model.reduced(content, numbers))


def _remove_others(folder: Path) -> list[str]:
    def refuse(_: bytes) -> bytes:
        raise ValueError("files of its kind are not written")

    return [note for pattern in _OTHER for note in _each(folder, pattern, refuse)]


def _each(folder: Path, pattern: str, rewrite: Callable[[bytes], bytes]) -> list[str]:
    """Rewrite the files of a pattern, or remove them with a note."""
    notes = []
    for path in sorted(folder.glob(pattern)):
        try:
            path.write_bytes(rewrite(path.read_bytes()))
        except (ValueError, StopIteration) as fault:
            path.unlink()
            notes.append(f"{path.name} was left out{because(fault)}; {FILE} has the same tokens")
            log.warning("%s", notes[-1])
    return notes
