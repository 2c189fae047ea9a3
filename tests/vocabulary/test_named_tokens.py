"""Tokens that files name, as languages, tasks and times: they are retained, and their identifiers follow everywhere."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import AddedToken

import graphprune as gp
from graphprune.huggingface import model_folder
from tests.vocabulary.small_tokenizers import ENGLISH, SPECIAL, TEXTS, byte_fallback, byte_level, unigram

FAMILIES: Any = transformers  # without types, whose signatures differ between classes
SIZES: dict[str, Any] = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
}  # fmt: skip
IDS: dict[str, Any] = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
LANGUAGES, TASKS = ("<|en|>", "<|el|>"), ("transcribe", "translate")
TIMES = [f"<|{0.02 * i:.2f}|>" for i in range(21)]


def _merges(kind: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a tokenizer by pairs."""
    table = json.loads(kind)["model"]
    return table["vocab"], [tuple(m.split(" ") if isinstance(m, str) else m) for m in table["merges"]]


def _pieces() -> list[tuple[str, float]]:
    """Pieces that spell text, with their scores."""
    return [(piece, score) for piece, score in json.loads(unigram())["model"]["vocab"] if piece not in SPECIAL]


def speech() -> tuple[Any, Any, dict[str, Any]]:
    """Tokenizer, model and generation settings for speech, with languages, tasks and times."""
    vocab, merges = _merges(byte_level())
    tokenizer = FAMILIES.WhisperTokenizer(vocab={**vocab}, merges=merges)
    marks = ["<|startoftranscript|>", *LANGUAGES, *(f"<|{t}|>" for t in TASKS), "<|startofprev|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.add_tokens([AddedToken(time, special=False, normalized=False) for time in TIMES])
    number = tokenizer.convert_tokens_to_ids
    end, start = number("<|endoftext|>"), number(marks[0])
    config = FAMILIES.WhisperConfig(
        **SIZES, vocab_size=len(tokenizer), max_source_positions=8, max_target_positions=16, num_mel_bins=4,
        bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=start,
        begin_suppress_tokens=[220, end],
    )  # fmt: skip
    return tokenizer, FAMILIES.WhisperForConditionalGeneration(config), {
        "eos_token_id": end, "decoder_start_token_id": start, "no_timestamps_token_id": number(marks[-1]),
        "prev_sot_token_id": number(marks[-2]), "lang_to_id": {name: number(name) for name in LANGUAGES},
        "task_to_id": {name: number(f"<|{name}|>") for name in TASKS}, "suppress_tokens": [3, 300, 350],
        "begin_suppress_tokens": [220, end], "forced_decoder_ids": [[1, None], [2, number("<|translate|>")]],
        "max_initial_timestamp_index": 5,
    }  # fmt: skip


def pairs_with_languages() -> tuple[Any, Any, dict[str, Any]]:
    """A translator with codes of languages, by pairs."""
    vocab, merges = _merges(byte_fallback())
    numbers = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for token in sorted(vocab, key=vocab.__getitem__):
        if not token.startswith("<0x"):
            numbers.setdefault(token, len(numbers))
    tokenizer = FAMILIES.NllbTokenizer(vocab=numbers, merges=merges, src_lang="eng_Latn", tgt_lang="fra_Latn")
    config = FAMILIES.M2M100Config(**SIZES, **IDS, vocab_size=len(tokenizer) + 3, max_position_embeddings=64)
    settings = {**IDS, "forced_bos_token_id": tokenizer.convert_tokens_to_ids("fra_Latn")}
    return tokenizer, FAMILIES.M2M100ForConditionalGeneration(config), settings


def pieces_with_languages() -> tuple[Any, Any, dict[str, Any]]:
    """A translator with codes of languages, by pieces."""
    first = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    tokenizer = FAMILIES.MBartTokenizer(vocab=[*first, *_pieces()], src_lang="en_XX", tgt_lang="ro_RO")
    language = tokenizer.convert_tokens_to_ids("ro_RO")
    ids = {**IDS, "decoder_start_token_id": language}
    config = FAMILIES.MBartConfig(**SIZES, **ids, vocab_size=len(tokenizer), max_position_embeddings=64)
    return tokenizer, FAMILIES.MBartForConditionalGeneration(config), {**ids, "bad_words_ids": [[9, 11], [120]]}


def sentinels() -> tuple[Any, Any, dict[str, Any]]:
    """A model with marks of gaps at the end of its pieces, and rows beyond them."""
    first, last = ("<pad>", "</s>", "<unk>"), [(f"<extra_id_{i}>", 0.0) for i in range(9, -1, -1)]
    vocab = [*((token, 0.0) for token in first), *_pieces(), *last]
    tokenizer = FAMILIES.T5Tokenizer(vocab=vocab, extra_ids=10)
    config = FAMILIES.T5Config(
        vocab_size=len(vocab) + 6, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return tokenizer, FAMILIES.T5ForConditionalGeneration(config), {"decoder_start_token_id": 0}


MODELS: Mapping[str, Callable[[], tuple[Any, Any, dict[str, Any]]]] = {
    "speech": speech, "pairs with languages": pairs_with_languages, "pieces with languages": pieces_with_languages,
    "sentinels": sentinels,
}  # fmt: skip
SLOW = {"pairs with languages", "pieces with languages", "sentinels"}


def folder_of(name: str, path: Path) -> Path:
    """Folder of a random model."""
    torch.manual_seed(0)
    tokenizer, model, settings = MODELS[name]()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """Numbers in a table, by their places."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from _numbers(item, f"{path}/{name}")
    if isinstance(value, int) and not isinstance(value, bool):
        yield path, value


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in MODELS])
def test_named_tokens_are_retained_and_renumbered(name: str, tmp_path: Path) -> None:
    source, small, text = folder_of(name, tmp_path / "source"), tmp_path / "small", tmp_path / "english.jsonl"
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in ENGLISH), encoding="utf-8")
    made = gp.trim(source, text=[text], coverage=0.97, align=1, output=small)
    assert made.error <= 1e-5 and made.tokens[1] < made.tokens[0]
    old, new = (FAMILIES.AutoTokenizer.from_pretrained(folder) for folder in (source, small))
    assert type(old) is type(new) and old.special_tokens_map == new.special_tokens_map
    moved = {number: new.get_vocab()[token] for token, number in old.get_vocab().items() if token in new.get_vocab()}
    before, after = (dict(_numbers(model_folder.read_json(f / "generation_config.json"))) for f in (source, small))
    others = {"/max_initial_timestamp_index", *(f"/forced_decoder_ids/{i}/0" for i in range(2))}
    assert after == {path: n if path in others else moved[n] for path, n in before.items()}
    for line in TEXTS:
        a, b = old(line)["input_ids"], new(line)["input_ids"]
        assert old.decode(a) == new.decode(b)
        assert any(number not in moved for number in a) or [moved[number] for number in a] == b
    added = [token for token in old.get_added_vocab() if token.startswith("<|0.")]
    assert new.convert_tokens_to_ids(added) == [moved[number] for number in old.convert_tokens_to_ids(added)]
    beyond = model_folder.config(source).vocab_size - len(old)
    assert any("belong to no token" in note for note in made.notes) == bool(beyond)
