"""Folders of files as libraries save them, and the classes that read them again."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from tests.zoo.field import language
from tests.zoo.field.case import SEED, FieldFolder, Inputs
from tests.zoo.refill import refill

transformers: Any = import_module("transformers")
WORDS = 118
SENTENCES = [f"w{i} w{i + 7} w{2 * i}" for i in range(8)]


def _saved(make: Callable[[], nn.Module], folder: Path) -> None:
    torch.manual_seed(SEED)
    model: Any = refill(make().eval(), SEED)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _tokenizer() -> Any:
    """A tokenizer of whole words."""
    words = {name: i for i, name in enumerate(["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(WORDS))])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _of_class(name: str, make: Callable[[], nn.Module], inputs: Callable[[int], Inputs] = language.text) -> FieldFolder:
    """A folder of transformers, read by one of its classes for a task."""

    def load(folder: Path) -> Any:
        return getattr(transformers, name).from_pretrained(folder, trust_remote_code=True).eval()

    def run(model: Any, seed: int) -> Tensor:
        logits: Tensor = model(**inputs(seed)[1]).logits
        return logits

    return FieldFolder(lambda folder: _saved(make, folder), load, run)


def _save_sentences(folder: Path) -> None:
    """A BERT, a mean over its tokens, a dense layer and a norm."""
    library: Any = import_module("sentence_transformers")
    parts: Any = import_module("sentence_transformers.models")
    inner = folder.parent / "transformer"
    _saved(_bert, inner)
    head = [parts.Pooling(32, pooling_mode="mean"), parts.Dense(32, 24), parts.Normalize()]
    library.SentenceTransformer(modules=[parts.Transformer(str(inner)), *head], device="cpu").save(str(folder))


def _bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=WORDS + 4, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    return language.built(transformers.BertModel, config)


def _load_sentences(folder: Path) -> Any:
    library: Any = import_module("sentence_transformers")
    return library.SentenceTransformer(str(folder), device="cpu", trust_remote_code=True).eval()


def _embed(model: Any, seed: int) -> Tensor:
    features = model.tokenize(SENTENCES[seed % 4 :])
    embedding: Tensor = model(features)["sentence_embedding"]
    return embedding


MODELS = {
    "sentence-transformers folder": FieldFolder(_save_sentences, _load_sentences, _embed, ("sentence_transformers",)),
    "t5 folder": _of_class("AutoModelForSeq2SeqLM", language.t5, language.two_texts),
    "mixtral folder": _of_class("AutoModelForCausalLM", language.mixtral),
    "deepseek-v3 folder": _of_class("AutoModelForCausalLM", language.deepseek_v3),
    "nemotron-h folder": _of_class("AutoModelForCausalLM", language.nemotron_h),
    "modernbert folder": _of_class("AutoModelForMaskedLM", language.modernbert),
}
