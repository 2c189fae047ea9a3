"""What a page takes for granted, made small: a language model, its text, and the programs on the path."""

import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from graphprune.exporters import EXPORTERS
from graphprune.passes.allocation import ALLOCATIONS
from graphprune.passes.depth import IMPORTANCES
from graphprune.passes.operators import RULES
from graphprune.passes.reconstructions import RECONSTRUCTIONS
from graphprune.passes.scores import SCORES
from graphprune.workflows.recipes.catalogue import RECIPES
from tests.docs.blocks import Reader

ROOT = Path(__file__).parents[2]
VOCABULARY = 320
PROGRAM = '#!/bin/sh\nPYTHONPATH="{root}:$PYTHONPATH" exec "{python}" {module} "$@"\n'
REGISTRIES = (RULES, SCORES, ALLOCATIONS, RECONSTRUCTIONS, IMPORTANCES, EXPORTERS, RECIPES)


@pytest.fixture(autouse=True)
def registries_as_before() -> Iterator[None]:
    """What pages register is forgotten; what they write anew is not there before."""
    tables = [registry._table for registry in REGISTRIES]
    before = [dict(table) for table in tables]
    RULES._table.pop(torch.ops.aten.glu.default, None)  # the rule that a page writes
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random decoder of the kind of SmolLM2, with a tokenizer that reads any text."""
    folder = tmp_path_factory.mktemp("model") / "smollm2"
    set_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(itertools.islice(topics.values(), 4), trainer)
    kind: Any = PreTrainedTokenizerFast
    kind(tokenizer_object=made, bos_token="<end>", eos_token="<end>").save_pretrained(folder)
    return folder


@pytest.fixture
def reader(tmp_path: Path, language_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """A reader in a fresh folder, with a model and two texts, as pages take for granted."""
    folder, path = tmp_path / "work", tmp_path / "bin"
    folder.mkdir()
    path.mkdir()
    for name, module in (("graphprune", "-m graphprune"), ("python", ""), ("torchrun", "-m torch.distributed.run")):
        (path / name).write_text(PROGRAM.format(root=ROOT, python=sys.executable, module=module))
        (path / name).chmod(0o755)
    words = " ".join(topics.values()).split()
    for name, seed in (("text.txt", 0), ("other.txt", 1)):
        start = random.Random(seed).randrange(len(words) // 2)
        (folder / name).write_text(" ".join(words[start : start + 6000]), encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MODEL", str(language_model))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules)
    yield Reader(folder, path)
    for name in set(sys.modules) - known:  # modules of the reader's own
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]
