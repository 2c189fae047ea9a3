"""How often a classifier is right, and how long it takes, one sentence or image at a time."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from graphprune.huggingface import model_folder
from tools.export_benchmark.opened import Opened
from tools.recipe_benchmark.resnet import images
from tools.recipe_benchmark.subjects import LONGEST, labelled_lines


@dataclass(frozen=True)
class Item:
    """The inputs of one sentence by name, or those of one image, whose name each export chooses; and its class."""

    values: Mapping[str, Tensor]
    label: int

    def feeds(self, to: Opened) -> dict[str, Tensor]:
        """The inputs as an export takes them: those of a fixed length are masked at the end.

        Raises:
            ValueError: if the export takes shorter texts than this.
        """
        if len(self.values) == 1:
            return dict.fromkeys(to.names, *self.values.values())
        missing = (to.length or len(self)) - len(self)
        if missing < 0:
            raise ValueError(f"a sentence of {len(self)} tokens, the export takes {to.length}: --static sequence=64")
        return {name: pad(self.values[name], (0, missing)) for name in to.names}

    def __len__(self) -> int:
        return next(iter(self.values.values())).shape[1]


def items(path: Path, tokenizer: Path, most: int | None) -> list[Item]:
    """Items of a file: of lines of a sentence, a tab, and its class; or of images, if it ends in .bin."""
    if path.suffix == ".bin":
        pixels, classes = images(path, most)
        return [Item({"image": x[None]}, int(y)) for x, y in zip(pixels, classes, strict=True)]
    reader = model_folder.tokenizer(tokenizer)
    return [
        Item(
            dict(reader(text, truncation=True, max_length=LONGEST, return_tensors="pt", return_token_type_ids=True)),
            label,
        )
        for text, label in labelled_lines(path)[:most]
    ]


def answers(given: Sequence[Item], models: Sequence[Opened]) -> tuple[list[float], list[list[float]]]:
    """Of each model the share of items that it gets right, and the seconds of each item; models take turns."""
    right, seconds = [0] * len(models), [list[float]() for _ in models]
    for model in models:
        model.runs.run(given[0].feeds(model))  # warms up
    for item in given:
        for i, model in enumerate(models):
            feeds, start = item.feeds(model), time.perf_counter()
            outputs = model.runs.run(feeds)
            seconds[i].append(time.perf_counter() - start)
            right[i] += int(_class(outputs) == item.label)
    return [count / len(given) for count in right], seconds


def _class(outputs: Mapping[str, Tensor]) -> int:
    scores = outputs["logits"] if "logits" in outputs else next(iter(outputs.values()))
    return int(torch.as_tensor(scores).flatten().argmax())
