"""Classifiers with data: an encoder of sentences, and a convolutional network for small images."""

import argparse
import gzip
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from graphprune.huggingface import model_folder
from graphprune.ir.program import Inputs
from tools.recipe_benchmark.resnet import ResNet, images

Batch = tuple[Inputs, Tensor]
LONGEST = 64  # tokens of a sentence
SENTENCES, IMAGES = 32, 250  # in a batch


@dataclass(frozen=True)
class Subject:
    """A module, a call of it, and labelled calls: those of the test, and calibration drawn by a number and a seed.

    `counted` is a glob: how much is gone is told in parameters of these names.
    """

    module: nn.Module
    example: Inputs
    counted: str
    test: Sequence[Batch]
    draw: Callable[[int, int], list[Batch]]


def encoder(options: argparse.Namespace) -> Subject:
    """A Hugging Face sequence classifier; what its own folder lacks comes from the folder of its base model."""
    settings, tokenizer = model_folder.config(options.model), model_folder.tokenizer(options.base or options.model)
    module = model_folder.build(options.model, settings)
    base = _stored(options.base, f"{module.base_model_prefix}.") if options.base else {}
    known = module.state_dict().keys()
    stored = {**{name: value for name, value in base.items() if name in known}, **_stored(options.model)}
    module.load_state_dict(stored)
    train = labelled_lines(options.train)

    def draw(samples: int, seed: int) -> list[Batch]:
        return _sentences(tokenizer, random.Random(seed).sample(train, min(samples, len(train))), seed)

    ids = torch.tensor([[3, 4, 5, 6], [4, 5, 6, 3]])
    prefix = f"{module.base_model_prefix}.encoder.*"
    return Subject(module.float(), _call(ids), prefix, _sentences(tokenizer, labelled_lines(options.test), 0), draw)


def network(options: argparse.Namespace) -> Subject:
    """ResNet-20 for images of 32 x 32 pixels."""
    module = ResNet()
    stored = load_file(options.model)
    module.load_state_dict({n: v.float() if v.is_floating_point() else v for n, v in stored.items()})
    train, test = images(options.train), images(options.test)

    def draw(samples: int, seed: int) -> list[Batch]:
        some = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(seed))[:samples]
        return _images(train[0][some], train[1][some], 64)

    return Subject(module.eval(), ((test[0][:2],), {}), "*", _images(*test, IMAGES), draw)


SUBJECTS: Mapping[str, Callable[[argparse.Namespace], Subject]] = {"encoder": encoder, "network": network}


def _stored(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files, under names that begin with `prefix`."""
    tensors = (item for file in sorted(folder.glob("*.safetensors")) for item in load_file(file).items())
    return {prefix + name.removeprefix(prefix): value.float() for name, value in tensors}


def labelled_lines(path: Path) -> list[tuple[str, int]]:
    """Sentences and their classes, of tab-separated lines below a heading."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = (line.rsplit("\t", 1) for line in raw.decode("utf-8").split("\n")[1:] if line.strip())
    return [(text, int(label)) for text, label in rows]


def _sentences(tokenizer: Any, lines: Sequence[tuple[str, int]], seed: int) -> list[Batch]:
    """Batches of sentences with equally many tokens, so that there is no padding, in an order drawn by `seed`."""
    alike: dict[int, list[tuple[list[int], int]]] = defaultdict(list)
    for text, label in lines:
        ids = tokenizer(text, truncation=True, max_length=LONGEST)["input_ids"]
        alike[len(ids)].append((ids, label))
    parts = [group[i : i + SENTENCES] for group in alike.values() for i in range(0, len(group), SENTENCES)]
    random.Random(seed).shuffle(parts)
    return [(_call(torch.tensor([ids for ids, _ in part])), torch.tensor([y for _, y in part])) for part in parts]


def _call(ids: Tensor) -> Inputs:
    return (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _images(x: Tensor, classes: Tensor, size: int) -> list[Batch]:
    parts = zip(torch.split(x, size), torch.split(classes, size), strict=True)
    return [(((part,), {}), labels) for part, labels in parts]
