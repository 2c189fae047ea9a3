"""Teacher: the dense model, whose predictions are computed once where the data are repeated."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from graphprune.evaluation.perplexity import logits
from graphprune.healing.data.examples import Batch, Examples
from graphprune.statistics.collector import matmul_autocast
from graphprune.support.workspace import without_shared_memory, writable

DRAWN, ENTROPY, WHOLE = "drawn", "entropy", "whole"


@dataclass(frozen=True)
class TeacherPredictions:
    """Predictions of the teacher on a batch: logits of all classes, shape (rows, classes), or drawn ones.

    `drawn` are k classes of each row, drawn from the teacher's probabilities, shape (rows, k), and `entropy` the means
    of the logarithms of their probabilities, shape (rows,). The mean of the student's logarithms over drawn classes
    estimates the cross entropy without bias (Sparse Logit Sampling, arXiv:2503.16870); that over the most probable
    classes does not. `output` is the whole output, for losses that need it.
    """

    whole: Tensor | None = None
    drawn: Tensor | None = None
    entropy: Tensor | None = None
    output: Any = None


@dataclass(frozen=True)
class Teacher:
    """Dense model and the store of its predictions.

    Args:
        model: The dense model.
        examples: Source of the batches, which calls it.
        drawn: Number of classes that are drawn and stored; 0 stores nothing.
        folder: Folder of the stored predictions, None without.
        seed: Seed of what is drawn.
        autocast: Whether matrices are multiplied in bfloat16.
        hidden: Whether the loss needs hidden states.
        predicts: Whether the loss needs logits; otherwise the output alone.
    """

    model: nn.Module
    examples: Examples
    drawn: int = 0
    folder: Path | None = None
    seed: int = 0
    autocast: bool = False
    hidden: bool = False
    predicts: bool = True

    @torch.no_grad()
    def reference(self, batch: Batch) -> TeacherPredictions:
        """Predictions on a batch: stored ones, or new ones, which are stored where that is requested."""
        if self.folder is None or not batch.keys or not self.drawn or self.hidden or not self.predicts:
            return self._full(batch)
        rows = [self._load(key) for key in batch.keys]
        if any(row is None for row in rows):
            rows = self._draw(batch)
        named = {name: _joined([row[name] for row in rows if row is not None]) for name in rows[0] or {}}
        device = next(self.model.parameters()).device
        return TeacherPredictions(**{name: tensor.to(device) for name, tensor in named.items()})

    def _full(self, batch: Batch) -> TeacherPredictions:
        output = self._output(batch)
        whole = flat_logits(output) if self.predicts else None
        return TeacherPredictions(whole, output=output if self.hidden or not self.predicts else None)

    def _output(self, batch: Batch) -> Any:
        options = {"output_hidden_states": True} if self.hidden else {}
        with matmul_autocast(self.autocast, next(self.model.parameters()).device.type):
            return self.examples.output(self.model, batch, **options)

    def _draw(self, batch: Batch) -> list[dict[str, Tensor] | None]:
        """Draw and store the predictions of every example of a batch."""
        whole = flat_logits(self._output(batch)).log_softmax(1)
        rows: list[dict[str, Tensor] | None] = []
        for key, part in zip(batch.keys, whole.chunk(len(batch.keys)), strict=True):
            row = self._row(key, part)
            self._save(key, row)
            rows.append(row)
        return rows

    def _row(self, key: str, logarithms: Tensor) -> dict[str, Tensor]:
        """Stored form of one example: all probabilities where these are few, otherwise drawn classes."""
        if logarithms.shape[1] <= self.drawn:
            return {WHOLE: logarithms.cpu()}
        seed = zlib.crc32(f"{self.seed} {key}".encode())
        generator = torch.Generator(logarithms.device).manual_seed(seed)
        drawn = torch.multinomial(logarithms.exp(), self.drawn, replacement=True, generator=generator)
        return {DRAWN: drawn.int().cpu(), ENTROPY: logarithms.gather(1, drawn).mean(1).cpu()}

    def _load(self, key: str) -> dict[str, Tensor] | None:
        try:
            return load_file(self._path(key))
        except (OSError, SafetensorError):  # it is not stored yet, or a file is incomplete
            return None

    def _save(self, key: str, row: dict[str, Tensor]) -> None:
        path = self._path(key)
        partial = path.with_suffix(".partial")
        with writable(path.parent):
            save_file(without_shared_memory(row), partial)
            partial.replace(path)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.safetensors"


def _joined(rows: list[Tensor]) -> Tensor:
    """Rows of several examples one after the other."""
    joined = torch.cat(rows)
    return joined.long() if joined.dtype == torch.int32 else joined


def flat_logits(output: Any) -> Tensor:
    """Logits in the output of a model in float32, shape (rows, classes)."""
    scores = output.get("logits", output) if isinstance(output, dict) else getattr(output, "logits", output)
    scores = scores[0] if isinstance(scores, tuple | list) else scores
    if not isinstance(scores, Tensor) or scores.dim() < 2:
        scores = logits(output)  # which explains what is missing
    return scores.flatten(0, -2).float()
