"""Small tokenizers of every kind, trained on a few sentences in several scripts, and folders of random models."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from graphprune.vocabulary.tokenizer_kind import BYTES

ENGLISH = (
    "The quick brown fox jumps over the lazy dog, and the dog sleeps.",
    "A tokenizer splits every text into tokens; the rest of a model sees their numbers alone.",
    "In the beginning there was a table of embeddings with a row for every token.",
    "These rows are most of the parameters of a small model, so remove those that nobody reads.",
)
OTHER = (
    "Η γρήγορη αλεπού πηδά πάνω από το τεμπέλικο σκυλί.",
    "Быстрая лиса прыгает через ленивую собаку.",
    "El veloz zorro marrón salta sobre el perro perezoso.",
    "敏捷的棕色狐狸跳过了懒狗。",
    "الثعلب البني السريع يقفز فوق الكلب الكسول",
)
TEXTS = (*ENGLISH, *OTHER)
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
TEMPLATE = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])


@cache
def byte_level() -> str:
    """Byte-pair encoding of bytes, with special tokens at the end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    return str(tokenizer.to_str())


@cache
def byte_fallback() -> str:
    """Byte-pair encoding of characters, of which rare ones are spelled by bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600, limit_alphabet=60, special_tokens=[*SPECIAL, *BYTES], show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = TEMPLATE
    table = json.loads(tokenizer.to_str())
    table["added_tokens"] = table["added_tokens"][: len(SPECIAL)]
    return json.dumps(table)


@cache
def word_piece() -> str:
    """WordPiece with the normalization of BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=450, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return str(tokenizer.to_str())


@cache
def unigram() -> str:
    """Unigram with a mark for spaces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = TEMPLATE
    return str(tokenizer.to_str())


KINDS: dict[str, Callable[[], str]] = {
    "byte-level": byte_level, "byte fallback": byte_fallback, "WordPiece": word_piece, "Unigram": unigram,
}  # fmt: skip


def tokenizer_of(kind: str) -> Any:
    """The tokenizer of a kind, as transformers wraps it."""
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>"}
    if kind == "WordPiece":
        names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "pad", "cls", "sep", "mask")}
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(tokenizer_object=Tokenizer.from_str(KINDS[kind]()), **names)


def folder_of(kind: str, path: Path, model: str, config: str, **fields: Any) -> Path:
    """Folder with a random model of a class, and the tokenizer of a kind."""
    tokenizer = tokenizer_of(kind)
    torch.manual_seed(0)
    rows = fields.pop("rows", len(tokenizer))
    settings = getattr(transformers, config)(vocab_size=rows, **fields)
    module = getattr(transformers, model)(settings)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.3 * torch.randn_like(weight))  # so that biases show
    module.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
