"""Perplexity and speed of language models; accuracy of classifiers."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from graphprune.display.progress import progress
from graphprune.errors import CalibrationError
from graphprune.huggingface import model_folder
from graphprune.ir.program import Inputs, Program
from graphprune.statistics import texts
from graphprune.statistics.collector import encoder_decoder_inputs, next_tokens, token_inputs
from graphprune.statistics.paired import exponential

Model = Program | Callable[..., Any]
_ROWS = 512  # rows of logits in one softmax


@dataclass(frozen=True)
class Evaluation:
    """Perplexity on windows of a text; `nll` is the mean negative log likelihood of a predicted token, in nats."""

    perplexity: float
    nll: float
    windows: int
    length: int
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second, including the computation of the likelihood."""
        return self.windows * self.length / self.seconds


@dataclass(frozen=True)
class Speed:
    """Throughput of forward passes, from their median time."""

    tokens_per_second: float
    seconds: float
    tokens: int


@dataclass(frozen=True)
class Classified:
    """Whether a classifier is right on each input, in their order."""

    right: tuple[bool, ...]
    seconds: float

    @property
    def accuracy(self) -> float:
        """Share of correct inputs."""
        return sum(self.right) / len(self.right)


def evaluate(
    model: Program | Path | str, text: str | Path, *, length: int = 512, windows: int | None = None, batch: int = 4
) -> Evaluation:
    """Measure a program, or the model of a Hugging Face folder, on consecutive windows of a text (see `texts.read`).

    Raises:
        LoadError: if the model, its tokenizer or the text cannot be read.
        CalibrationError: if the text is too short, or the model predicts no finite numbers.
    """
    source = tokenizer_folder(model)
    ids = windows_of(source, text, length, windows)
    return perplexity(model if isinstance(model, Program) else model_folder.module(source), ids, batch=batch)


def windows_of(folder: Path, text: str | Path, length: int, count: int | None) -> Tensor:
    """First windows of a text, shape (count, length), by the tokenizer of a folder; all if `count` is None.

    Raises:
        LoadError: if the tokenizer or the text cannot be read.
        CalibrationError: if the text is too short.
    """
    ids = texts.windows(model_folder.tokenizer(folder), texts.read(text), length)
    if count is not None and len(ids) < count:
        raise CalibrationError(f"the text {text} has {len(ids)} windows of {length} tokens, expected {count}")
    return ids[:count]


def tokenizer_folder(model: Program | Path | str) -> Path:
    """Folder of the tokenizer of a model.

    Raises:
        CalibrationError: if the program was not loaded from a folder.
    """
    if not isinstance(model, Program):
        return Path(model)
    if model.source is None:
        raise CalibrationError(
            "the program was not loaded from a folder and has no tokenizer; use perplexity with token ids"
        )
    return model.source.texts


def perplexity(model: Model, windows: Tensor, *, batch: int = 4) -> Evaluation:
    """Measure the perplexity of each token given the tokens before it in its window.

    An encoder-decoder predicts the second half of a window, whose first half its encoder reads.

    `windows` are token ids of shape ``(n, length)``; a model that is no program is called with `input_ids`.
    Likelihoods are computed some rows at a time, since logits of a large vocabulary are large.

    Raises:
        CalibrationError: if the likelihoods are not finite.
    """
    count, length = windows.shape
    start = time.perf_counter()
    sums, tokens = zip(*_likelihoods(model, windows, batch), strict=True)
    nll = sum(sums) / sum(tokens)
    return Evaluation(exponential(nll), nll, count, length, sum(tokens), time.perf_counter() - start)


def window_losses(model: Model, windows: Tensor, *, batch: int = 4) -> list[float]:
    """Mean negative log likelihood of the tokens of each window, in nats; see `perplexity`.

    Raises:
        CalibrationError: if the likelihoods are not finite.
    """
    return [total / tokens for total, tokens in _likelihoods(model, windows, batch)]


def _likelihoods(model: Model, windows: Tensor, batch: int) -> Iterator[tuple[float, int]]:
    """Summed negative log likelihood of each window, and the number of its predicted tokens."""
    call, count = logits_function(model), len(windows)
    with torch.inference_mode(), progress("measuring perplexity", count) as step:
        for first in range(0, count, batch):
            part = windows[first : first + batch]
            scores, targets = next_tokens(call(part), part)
            sums = [negative_log_likelihood(*pair) for pair in zip(scores, targets, strict=True)]
            if not math.isfinite(sum(sums)):
                last = first + len(part) - 1
                raise CalibrationError(f"the model predicts numbers that are not finite in windows {first} to {last}")
            yield from ((total, targets.shape[1]) for total in sums)
            step(len(part))


@dataclass(frozen=True)
class PerplexityTest:
    """Evaluation texts for a language model before and after pruning, read once: windows of token ids by text."""

    windows: Mapping[str, Tensor]

    @classmethod
    def of(cls, program: Program, texts: Sequence[str | Path], length: int, count: int) -> "PerplexityTest":
        """First windows of some texts, by the tokenizer of a program.

        Raises:
            LoadError: if a text or the tokenizer cannot be read.
            CalibrationError: if a text is too short, or the program was not loaded from a folder.
        """
        return cls({str(text): windows_of(tokenizer_folder(program), text, length, count) for text in texts})

    def perplexities(self, model: Model) -> dict[str, float]:
        """Perplexity on every text, by its name.

        Raises:
            CalibrationError: if the likelihoods are not finite, or the model is no language model.
        """
        return {text: perplexity(model, windows).perplexity for text, windows in self.windows.items()}


def classify(model: Model, batches: Iterable[tuple[Inputs, Tensor]]) -> Classified:
    """Measure how often the highest score is that of the right class.

    Every batch has the arguments ``(args, kwargs)`` of a call, and the right classes, shape ``(n,)``. The model returns
    scores, shape ``(n, classes)``: alone, first in a tuple, or as `logits`.

    Raises:
        CalibrationError: if there is no batch, or the model returns other things, or numbers that are not finite.
    """
    run = model.module() if isinstance(model, Program) else model
    start, right = time.perf_counter(), list[bool]()
    with torch.inference_mode():
        for (args, kwargs), labels in batches:
            scores = logits(run(*args, **kwargs), 2)
            if scores.shape[0] != len(labels) or not scores.isfinite().all():
                shape = tuple(scores.shape)
                raise CalibrationError(f"for {len(labels)} labels there are scores {shape}, or some are not finite")
            right += (scores.argmax(1) == labels).tolist()
    if not right:
        raise CalibrationError("there is nothing to classify; expected at least one batch of inputs and labels")
    return Classified(tuple(right), time.perf_counter() - start)


def tokens_per_second(model: Model, windows: Tensor, *, repeats: int = 5) -> Speed:
    """Time forward passes over token ids of shape ``(batch, length)``, after one that is not timed."""
    call = logits_function(model)
    times = []
    with torch.inference_mode(), progress("measuring speed", repeats + 1) as step:
        for _ in range(repeats + 1):
            start = time.perf_counter()
            call(windows)
            times.append(time.perf_counter() - start)
            step()
    seconds = statistics.median(times[1:])
    return Speed(windows.numel() / seconds, seconds, windows.numel())


def logits_function(model: Model) -> Callable[[Tensor], Tensor]:
    """Function from token ids to logits of shape ``(batch, length, vocabulary)``."""
    settings: Any = getattr(model, "config", None)
    if not isinstance(model, Program) and getattr(settings, "is_encoder_decoder", False):
        start = model_folder.start_of(settings.to_dict())
        return lambda ids: logits(model(**encoder_decoder_inputs(ids, start)))
    if not isinstance(model, Program):
        return lambda ids: logits(model(input_ids=ids))
    module, program = model.module(), model
    return lambda ids: logits(module(**token_inputs(program, ids)))


def logits(output: Any, rank: int = 3) -> Tensor:
    """Logits in the output of a model: of every token (rank 3), or of the whole input (rank 2).

    Raises:
        CalibrationError: if it has none of this rank.
    """
    scores = output.get("logits", output) if isinstance(output, dict) else getattr(output, "logits", output)
    scores = scores[0] if isinstance(scores, tuple | list) else scores
    if not isinstance(scores, Tensor) or scores.dim() != rank:
        kind, what = type(output).__name__, "language model" if rank == 3 else "classifier"
        scope = "for every token" if rank == 3 else "of shape (inputs, classes)"
        raise CalibrationError(f"the model returns a {kind} without logits {scope}: it is no {what}")
    return scores


def negative_log_likelihood(rows: Tensor, targets: Tensor) -> float:
    """Summed negative log likelihood of tokens, shape (n,), by logits of shape (n, vocabulary).

    It is summed in double precision, some rows at a time, since logits of a large vocabulary are large.
    """
    parts = zip(torch.split(rows, _ROWS), torch.split(targets, _ROWS), strict=True)
    return sum(cross_entropy(row.float(), target, reduction="none").double().sum().item() for row, target in parts)
