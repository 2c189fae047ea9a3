"""Measurements of a model before and after its training: its perplexity on texts, or its accuracy as a classifier."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from graphprune.errors import OptionError
from graphprune.evaluation.perplexity import classify, perplexity, windows_of
from graphprune.healing.data.text_examples import SeparateTexts, Steps, read_separate
from graphprune.healing.data.text_tasks import TextTask
from graphprune.healing.heal_options import HealOptions
from graphprune.healing.healed_folder import with_weights
from graphprune.healing.models import LoadedModel
from graphprune.ir.program import Inputs

TOGETHER = 32  # texts of a classifier in a batch


@dataclass(frozen=True)
class Examination:
    """Texts on which a model is measured, by name: windows for perplexity, or labeled batches for accuracy."""

    pruned: LoadedModel
    device: str
    windows: Mapping[str, Tensor] = field(default_factory=dict)
    batches: Mapping[str, list[tuple[Inputs, Tensor]]] = field(default_factory=dict)

    @classmethod
    def of(cls, options: HealOptions, pruned: LoadedModel, task: TextTask | None) -> "Examination":
        """Examination on the texts of some options.

        Raises:
            CalibrationError: if a text is too short, or has no labels for a classifier.
            LoadError: if a text cannot be read.
            OptionError: if there is nothing to measure in such a model.
        """
        names = [str(text) for text in options.evaluate]
        if not names:
            return cls(pruned, options.device)
        if task is not None and task.kind == "classifier":
            return cls(pruned, options.device, batches={name: _labeled(options, pruned, task, name) for name in names})
        if task is not None and task.kind == "masked":
            raise OptionError("a masked model has no perplexity; omit evaluate, and read the held-out loss")
        windows = {name: windows_of(pruned.folder, name, options.length, options.windows) for name in names}
        return cls(pruned, options.device, windows)

    @property
    def quantity(self) -> Literal["accuracy", "perplexity"]:
        """Name of what is measured."""
        return "accuracy" if self.batches else "perplexity"

    def measure(self) -> dict[str, float]:
        """Perplexity or accuracy, a share, of the model as it is now on every text."""
        if not self.windows and not self.batches:
            return {}
        module, program = self.pruned.module.to(self.device), self.pruned.program
        device = self.device if program is None else "cpu"
        model: Any = module if program is None else with_weights(program, module.cpu())
        known = {name: perplexity(model, ids.to(device)).perplexity for name, ids in self.windows.items()}
        for name, batches in self.batches.items():
            known[name] = classify(model, ((_on(inputs, device), labels) for inputs, labels in batches)).accuracy
        return known


def _labeled(options: HealOptions, pruned: LoadedModel, task: TextTask, name: str) -> list[tuple[Inputs, Tensor]]:
    """Batches of the texts of a file, with their classes."""
    tokenizer = pruned.tokenizer()
    rows, labels = read_separate(tokenizer, [name], options.length, pruned.classes(task), pruned.label_names)
    division = Steps(TOGETHER, 1, options.seed)
    texts = SeparateTexts(task, rows, labels, range(len(rows)), division, tokenizer.pad_token_id or 0)
    return [(((), batch.inputs), batch.labels) for batch in texts.held_out() if batch.labels is not None]


def _on(inputs: Inputs, device: str) -> Inputs:
    return inputs[0], {name: tensor.to(device) for name, tensor in inputs[1].items()}
