"""The tokenizer of a folder as fields of a GGUF file."""

import json
from pathlib import Path
from typing import Any

from graphprune.errors import ExportError
from graphprune.huggingface import model_folder
from graphprune.support.packages import gguf

_KEYS = gguf.Keys.Tokenizer
_DIGIT = r"\p{N}"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ANY_CASE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

#: Names of llama.cpp's pre-tokenizers, by the expressions that split text and by whether whole words are looked up
#: before pairs are merged.
_SPLITS: dict[tuple[str, ...], dict[bool, str]] = {
    (_WORDS,): {False: "gpt-2"},
    (_DIGIT, _WORDS): {False: "smollm"},
    (_ANY_CASE % r"\p{N}{1,3}",): {False: "smaug-bpe", True: "llama-bpe"},
    (_ANY_CASE % r"\p{N}",): {False: "qwen2"},
    (_CASED,): {False: "tekken", True: "tekken"},
}


def vocabulary(folder: Path, size: int) -> tuple[dict[str, Any], list[str]]:
    """Tokenizer fields of a file, and notes; `size` is the vocabulary size of the model.

    Raises:
        ExportError: if llama.cpp has no such tokenizer, or the model has fewer tokens than the tokenizer.
    """
    if not any((folder / name).is_file() for name in model_folder.TOKENIZERS):
        return {_KEYS.MODEL: "none"}, ["no vocabulary: the folder has no tokenizer, so it takes token ids alone"]
    tokenizer = model_folder.tokenizer(folder)
    table = _table(folder, tokenizer)
    ids: dict[str, int] = tokenizer.get_vocab()
    if (largest := max(ids.values())) >= size:
        raise ExportError(f"{folder}: its tokenizer has token {largest}, the model has {size} tokens; save both again")
    sentencepiece = table["model"].get("byte_fallback", False)
    fields = _by_score(table) if sentencepiece else _by_merges(folder, table)
    tokens, types = _tokens(tokenizer, table, ids, size)
    fields |= {_KEYS.LIST: tokens, _KEYS.TOKEN_TYPE: types, **_special(tokenizer)}
    if sentencepiece:
        fields[_KEYS.SCORES] = _scores(table, tokens)
    return fields, [f"{size - len(ids)} tokens have no text"] if len(ids) < size else []


def _table(folder: Path, tokenizer: Any) -> dict[str, Any]:
    """The tokenizer as tokenizer.json describes it."""
    if not tokenizer.is_fast:
        raise ExportError(f"{folder}: its tokenizer is Python code, which llama.cpp cannot run; {_ADVICE}")
    table: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    if table["model"]["type"] != "BPE":
        raise ExportError(f"{folder}: its tokenizer is of type {table['model']['type']}, expected BPE; {_ADVICE}")
    return table


_ADVICE = "to export weights for token ids only, remove the tokenizer's files from the folder"


def _by_merges(folder: Path, table: dict[str, Any]) -> dict[str, Any]:
    """Fields of a byte-level BPE tokenizer, which merges pairs in the order of their list."""
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in table["model"]["merges"]]
    steps, whole_words = tuple(_steps(table.get("pre_tokenizer"))), bool(table["model"].get("ignore_merges"))
    names = _SPLITS.get(steps, {})
    if whole_words not in names or not merges:
        description = ", then ".join([*steps, *["whole words looked up first"] * whole_words]) or "nothing"
        raise ExportError(
            f"{folder}: no pre-tokenizer of llama.cpp is known to split text as its tokenizer does, by {description}; "
            f"{_ADVICE}"
        )
    return {_KEYS.MODEL: "gpt2", _KEYS.PRE: names[whole_words], _KEYS.MERGES: merges}


def _steps(pre: Any) -> list[str]:
    """Regular expressions that split text, in order; unknown steps by their names."""
    if pre is None:
        return []
    if pre["type"] == "Sequence":
        return [step for each in pre["pretokenizers"] for step in _steps(each)]
    if pre["type"] == "ByteLevel" and not pre.get("add_prefix_space"):
        return [_WORDS] if pre.get("use_regex", True) else []
    if pre["type"] == "Digits" and pre.get("individual_digits"):
        return [_DIGIT]
    if pre["type"] == "Split" and pre["behavior"] == "Isolated" and not pre["invert"] and "Regex" in pre["pattern"]:
        return [str(pre["pattern"]["Regex"])]
    return [str(pre["type"])]


def _by_score(table: dict[str, Any]) -> dict[str, Any]:
    """Fields of a SentencePiece tokenizer, which merges the pair that gives the token with the highest score."""
    text = json.dumps([table.get("normalizer"), table.get("pre_tokenizer")])
    space = '"Prepend"' in text or '"prepend_scheme": "first"' in text or '"prepend_scheme": "always"' in text
    return {_KEYS.MODEL: "llama", _KEYS.PRE: "default", _KEYS.ADD_PREFIX: space}


def _scores(table: dict[str, Any], tokens: list[str]) -> list[float]:
    """Scores by token that reproduce the order of the list of merges; tokens that no merge produces come last."""
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in table["model"]["merges"]]
    first: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        first.setdefault("".join(pair), rank)
    return [-float(first.get(token, len(merges))) for token in tokens]


def _tokens(tokenizer: Any, table: dict[str, Any], ids: dict[str, int], size: int) -> tuple[list[str], list[int]]:
    """Texts and types of all tokens, by id."""
    text_by_id = {number: text for text, number in ids.items()}
    added = {entry["id"]: bool(entry["special"]) for entry in table["added_tokens"]}
    types = []
    for number in range(size):
        if number not in text_by_id:
            types.append(gguf.TokenType.UNUSED)
        elif table["model"].get("byte_fallback") and text_by_id[number] == table["model"].get("unk_token"):
            types.append(gguf.TokenType.UNKNOWN)
        elif number in added:
            types.append(gguf.TokenType.CONTROL if added[number] else gguf.TokenType.USER_DEFINED)
        else:
            byte = table["model"].get("byte_fallback") and _is_byte(text_by_id[number])
            types.append(gguf.TokenType.BYTE if byte else gguf.TokenType.NORMAL)
    return [text_by_id.get(number, f"[PAD{number}]") for number in range(size)], [int(kind) for kind in types]


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _special(tokenizer: Any) -> dict[str, Any]:
    """Special tokens, whether they are added around a text, and the chat template."""
    named = {
        _KEYS.BOS_ID: tokenizer.bos_token_id, _KEYS.EOS_ID: tokenizer.eos_token_id,
        _KEYS.UNK_ID: tokenizer.unk_token_id, _KEYS.PAD_ID: tokenizer.pad_token_id,
    }  # fmt: skip
    ids = tokenizer("a")["input_ids"]
    fields: dict[str, Any] = {key: int(number) for key, number in named.items() if number is not None}
    fields[_KEYS.ADD_BOS] = bool(ids) and ids[0] == tokenizer.bos_token_id
    fields[_KEYS.ADD_EOS] = bool(ids) and ids[-1] == tokenizer.eos_token_id
    if isinstance(tokenizer.chat_template, str):
        fields[_KEYS.CHAT_TEMPLATE] = tokenizer.chat_template
    return fields
