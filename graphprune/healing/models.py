"""Models of folders that take part in healing: the pruned one, and its teacher."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphprune.errors import CalibrationError, LoadError, because
from graphprune.frontends.loading import load
from graphprune.healing.data.text_tasks import TextTask, task_of
from graphprune.healing.teacher import flat_logits
from graphprune.huggingface import model_folder
from graphprune.ir.program import Program
from graphprune.statistics.collector import DECODER_IDS


@dataclass(frozen=True)
class LoadedModel:
    """Model of a folder in float32, in evaluation mode; `program` is the graph of a folder that holds one."""

    folder: Path
    module: nn.Module
    program: Program | None = None

    @classmethod
    def read(cls, path: str | Path, role: str) -> "LoadedModel":
        """Read the model of a folder; `role` begins messages, as in "the teacher".

        Raises:
            LoadError: if there is none, or it cannot be read.
        """
        folder = Path(path)
        if not folder.is_dir():
            near = "is a file" if folder.exists() else "does not exist"
            raise LoadError(f"{role} {folder} {near}; expected a folder with a model, as graphprune writes them")
        if model_folder.is_folder(folder):
            module = model_folder.module(folder)
            module.config.use_cache = False
            return cls(folder, module)
        if not model_folder.holds_graph(folder):
            raise LoadError(
                f"{role} {folder} holds no model: expected {model_folder.CONFIG} with {model_folder.WEIGHTS}, or "
                f"{model_folder.PROGRAM}"
            )
        program = load(folder)
        return cls(folder, program.module(), program)

    @classmethod
    def teacher(cls, path: str | Path) -> "LoadedModel":
        """Read a teacher: the model of a folder, or any file that `load` accepts.

        Raises:
            LoadError: if it cannot be read.
        """
        if Path(path).is_dir() or not Path(path).is_file():
            return cls.read(path, "the teacher")
        program = load(path)
        return cls(Path(path).parent, program.module(), program)

    @property
    def names(self) -> frozenset[str]:
        """Names of the inputs of a text model."""
        if self.program is not None:
            return frozenset(self.program.inputs[1])
        names = frozenset(inspect.signature(self.module.forward).parameters)
        settings: Any = self.module.config
        return names if settings.is_encoder_decoder else names - {DECODER_IDS}

    def task(self, tokenizer: Any) -> TextTask:
        """Task of a text model.

        Raises:
            CalibrationError: if it takes other inputs than text, or has no logits.
        """
        start = 0
        if DECODER_IDS in self.names and self.program is None:
            start = model_folder.start_token(self.folder)
        return task_of(self.module, tokenizer, self.names, start)

    @torch.no_grad()
    def classes(self, task: TextTask) -> int:
        """Number of classes of a classifier, or of tokens that a language model predicts."""
        return flat_logits(self.module(**task.inputs(torch.zeros(1, 2, dtype=torch.long)))).shape[1]

    @property
    def label_names(self) -> Mapping[str, int]:
        """Numbers of the classes of a classifier, by name."""
        return model_folder.label_names(self.folder)

    def tokenizer(self) -> Any:
        """Tokenizer of the folder.

        Raises:
            LoadError: if there is none.
        """
        return model_folder.tokenizer(self.folder)


def require_vocabulary(tokenizer: Any, teacher: LoadedModel) -> None:
    """Check that the tokenizer of a teacher, if it has one, is that of the pruned model.

    Raises:
        CalibrationError: if it gives a token another number.
    """
    if not any((teacher.folder / name).is_file() for name in model_folder.TOKENIZERS):
        return
    own, other = tokenizer.get_vocab(), teacher.tokenizer().get_vocab()
    differ = [token for token, number in own.items() if other.get(token) != number]
    if differ or len(own) != len(other):
        example = f": {differ[0]!r} is {own[differ[0]]} and {other.get(differ[0])}" if differ else ""
        raise CalibrationError(
            f"the teacher {teacher.folder} has another vocabulary, of {len(other):,} tokens, than the pruned model, of "
            f"{len(own):,}{example}; name the model that was pruned, or train with labels (aim labels)"
        )


def require_classes(task: TextTask, pruned: LoadedModel, teacher: LoadedModel) -> None:
    """Check that both models predict the same number of classes.

    Raises:
        CalibrationError: if they do not, or the teacher does not take the inputs of the pruned model.
    """
    own = pruned.classes(task)
    try:
        other = teacher.classes(task)
    except Exception as fault:  # code of a model may raise anything
        raise CalibrationError(
            f"the teacher {teacher.folder} does not run on the inputs of the pruned model{because(fault)}; name the "
            "model that was pruned"
        ) from fault
    if own != other:
        raise CalibrationError(
            f"the teacher {teacher.folder} predicts {other:,} classes, the pruned model {own:,}; name the model that "
            "was pruned, or train with labels (aim labels)"
        )


def require_checkpointing(module: nn.Module) -> None:
    """Turn on the repeated computation of activations.

    Raises:
        CalibrationError: if the class of the model cannot do it.
    """
    enable: Any = getattr(module, "gradient_checkpointing_enable", None)
    try:
        if enable is None:
            raise ValueError("it is no model of transformers")
        enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as fault:
        raise CalibrationError(
            f"{type(module).__name__} cannot compute activations again{because(fault)}; omit checkpointing, and use "
            "accumulate to take less memory"
        ) from fault
