"""Tiny random models of several kinds, saved as their users save them, and programs of narrower ones."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

import graphprune as gp
from graphprune.exporters import EXPORTERS
from graphprune.exporters.contract import ExportOptions, ExportReport
from graphprune.exporters.model_folders.folder_writer import save as save_folder
from graphprune.exporters.subjects.decoders import cached_decoder
from graphprune.exporters.targets.onnx import export_program
from graphprune.frontends.modules import trace
from graphprune.huggingface import per_layer
from graphprune.ir.program import Program, Source
from tests.small_configs import CONFIGS, DEPTHS, VOCABULARY

TEXT = ("llama", "opt", "gpt2", "bert")

Configure = Callable[..., PreTrainedConfig]
Make = Callable[..., nn.Module]
Save = Callable[..., Path]
Narrow = Callable[..., Program]
Exported = Callable[..., ExportReport]


@pytest.fixture(scope="session")
def model(configure: Configure) -> Make:
    """A random model of a kind, always the same."""

    def make(kind: str, **changes: Any) -> nn.Module:
        torch.manual_seed(0)
        made: nn.Module = getattr(transformers, CONFIGS[kind][1])(configure(kind, **changes))
        for name, parameter in made.named_parameters():
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name and "weight" in name else 0.0, 0.1)
        return made.eval()

    return make


@pytest.fixture(scope="session")
def saved(model: Make, tmp_path_factory: pytest.TempPathFactory) -> Save:
    """The folder of a random model, with a tokenizer where it reads text; tests only read it."""

    @cache
    def once(kind: str, changes: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        model(kind, **json.loads(changes)).save_pretrained(folder)  # type: ignore[operator]
        if kind in TEXT:
            tokenizer().save_pretrained(folder)
        return folder

    return lambda kind, **changes: once(kind, json.dumps(changes, sort_keys=True))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The report of an export of a folder, made once; tests only read the folder that it names."""

    @cache
    def once(source: Path, target: str, options: str) -> ExportReport:
        output = tmp_path_factory.mktemp(target) / "out"
        return EXPORTERS[target].export(source, output, ExportOptions(**json.loads(options)))

    return lambda source, target="onnx", **options: once(source, target, json.dumps(options, sort_keys=True))


@pytest.fixture(scope="session")
def uneven(configure: Configure, saved: Save, tmp_path_factory: pytest.TempPathFactory) -> Save:
    """The folder of a decoder whose two layers differ in heads and widths; tests only read it."""

    @cache
    def once(changed: str) -> Path:
        changes = json.loads(changed)
        config = configure("llama", use_cache=False, **changes)
        config.allow_global_per_layer_attribute_access = True
        config.per_layer_config = {1: {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 20}}
        program = trace(per_layer.build(config).train(False), (), {"input_ids": torch.arange(14).view(2, 7)})
        program = replace(program, source=Source(saved("llama", **changes), "huggingface"))
        folder = tmp_path_factory.mktemp("uneven") / "model"
        save_folder(program, folder, destination="per-layer")
        return folder

    return lambda **changes: once(json.dumps(changes, sort_keys=True))


def tokenizer() -> Any:
    """A tokenizer of as many words as the models have."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def narrowed(model: Make, saved: Save) -> Narrow:
    """A program that is narrower than the model in the folder it says it comes from."""

    @cache
    def traced(kind: str, changes: str) -> Program:
        fields = json.loads(changes)
        depth = {name: fields[name] for name in DEPTHS if name in fields}
        return program_of(model(kind, use_cache=False, **fields), saved(kind, **depth))

    def narrow(kind: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Program:
        program = traced(kind, json.dumps(changes))
        assert program.source is not None
        return replace(program, source=replace(program.source, dtype=dtype))

    return narrow


def program_of(small: nn.Module, source: Path) -> Program:
    """The program of a model, as if it were cut from the one in a folder."""
    torch.manual_seed(1)
    name = small.main_input_name
    side = getattr(small.config, "image_size", 32)
    x = torch.randn(2, 3, side, side) if name == "pixel_values" else torch.randint(0, VOCABULARY, (2, 7))
    inputs = {str(name): x}
    if small.config.is_encoder_decoder:  # type: ignore[union-attr]
        inputs["decoder_input_ids"] = x[:, :5]
    return replace(trace(small, (), inputs), source=Source(source, "huggingface"))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A free folder of a network of one's own."""
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.AdaptiveAvgPool2d(1)
    network = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8, 4)).eval()
    program = trace(network, (torch.randn(2, 3, 8, 8),))
    folder = tmp_path_factory.mktemp("graphs") / "images"
    gp.save(gp.apply(program, gp.plan(program, sparsity=0.3)), output=folder)
    return folder


@pytest.fixture(scope="session")
def program_with_cache(model: Make) -> Program:
    """A decoder with its cache as inputs and outputs."""
    module, args, kwargs, free = cached_decoder(model("llama", num_hidden_layers=1))
    return trace(module, args, kwargs, dynamic_shapes=free, state=("past_key_values*",))


@pytest.fixture(scope="session")
def stored(program_with_cache: Program, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """The report of an export of that program, without a folder that it came from."""
    return export_program(program_with_cache, tmp_path_factory.mktemp("stored") / "decoder")


@pytest.fixture(scope="session")
def decoder(stored: ExportReport) -> Path:
    """The folder of that export; tests only read it."""
    return stored.output
