"""A GGUF file run by llama.cpp itself, against the model that it was made from."""

import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphprune.errors import ExportError
from graphprune.exporters.checks import divergence, parity
from graphprune.exporters.checks.validation import MARGIN, Reference, own_error
from graphprune.exporters.subjects import trial_inputs
from graphprune.exporters.subjects.decoders import decoder_subject
from graphprune.exporters.subjects.subject import Subject, named_dimensions
from graphprune.huggingface import model_folder
from graphprune.support.packages import load

PACKAGE, _LOGGER = "llama_cpp", "llama-cpp-python"
PLACES = 64
_PROMPT, _GREEDY = 5, 16
_TEXTS = (
    "The quick brown fox jumps over the lazy dog.", "In 1905 there were 26,000 of them, or 3.5 %.", "it's WE'LL  I'm",
    "  two spaces\n\n\tand a tab\r\n", "naïve café: Größe, здравствуй, 你好!", "def f(x):\n    return x ** 2 # ok",
)  # fmt: skip


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


def subject_of(model: Any) -> Subject:
    """A decoder that reads whole texts, without a cache as an input."""
    names, args = ("input_ids",), (torch.ones(2, 3, dtype=torch.long),)
    size = int(model.config.vocab_size)
    return Subject(_Logits(model), args, names, ("logits",), named_dimensions(names, args), size, model.dtype)


@dataclass
class Runtime:
    """llama.cpp with one file open; its cache is in float32, so that it adds no rounding."""

    library: Any

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits of texts, each read half at once and half token by token."""
        rows = [self._row(ids.tolist()) for ids in feeds["input_ids"]]
        return {"logits": torch.stack(rows)}

    def _row(self, ids: list[int]) -> Tensor:
        half = (len(ids) + 1) // 2
        self.library.reset()
        self.library.eval(ids[:half])
        for token in ids[half:]:
            self.library.eval([token])
        return torch.from_numpy(np.array(self.library.scores[: len(ids)], dtype=np.float32))

    def continued(self, ids: list[int], count: int) -> list[int]:
        """The likeliest tokens after a prompt."""
        new: list[int] = []
        self.library.reset()
        self.library.eval(ids)
        for _ in range(count):
            new.append(int(self.library.scores[self.library.n_tokens - 1].argmax()))
            self.library.eval(new[-1:])
        return new

    def tokens(self, text: str) -> list[int]:
        """The ids of a text, without those that are put around it."""
        found: list[int] = self.library.tokenize(text.encode("utf-8"), add_bos=False, special=False)
        return found


def open_file(path: Path, places: int) -> Runtime:
    """llama.cpp with a file open, for texts of so many tokens.

    Raises:
        PackageError: if llama.cpp is missing or broken.
        ExportError: if it does not load the file.
    """
    library = load(PACKAGE, "gguf")
    said = io.StringIO()
    try:
        with redirect_stderr(said):  # where llama.cpp says why, among much else
            opened = library.Llama(
                str(path), n_ctx=places, logits_all=True, verbose=True, n_gpu_layers=0,
                n_threads=torch.get_num_threads(), n_threads_batch=torch.get_num_threads(),
                type_k=library.GGML_TYPE_F32, type_v=library.GGML_TYPE_F32,
            )  # fmt: skip
            opened.verbose = False
    except (ValueError, RuntimeError, AssertionError) as fault:
        why = [line.strip() for line in said.getvalue().splitlines() if "error" in line.lower()]
        raise ExportError(f"llama.cpp does not load {path.name}: {why[0] if why else fault}") from fault
    finally:
        logging.getLogger(_LOGGER).setLevel(logging.CRITICAL)
    return Runtime(opened)


def reference_of(model: Any, dtype: str, bound: float) -> Reference:
    """The model in float32, or its rounded weights, and how far llama.cpp may be from it.

    With weights in half precision llama.cpp rounds what they are multiplied with; what that alone changes in PyTorch,
    it may change there too.

    Raises:
        ExportError: if it changes the outputs beyond use.
    """
    if dtype == "fp32":
        return Reference(subject_of(model), bound)
    rounded = deepcopy(model)
    with torch.no_grad():
        for matrix in (parameter for parameter in rounded.parameters() if parameter.dim() > 1):
            matrix.copy_(matrix.half())
    subject = subject_of(rounded)
    own = max(_own_errors(subject))
    return Reference(subject, max(bound, parity.FLOAT16, MARGIN * own), own)


def _own_errors(subject: Subject) -> Iterator[float]:
    """By case, what it changes to round all that is multiplied with a matrix of weights to half precision."""
    for _, feeds, _ in trial_inputs.single(subject):
        plain = subject.run(feeds)
        hooks = [
            module.register_forward_pre_hook(lambda _, args: (args[0].half().to(args[0].dtype),))
            for module in subject.module.modules()
            if isinstance(module, nn.Linear)
        ]
        rounded = subject.run(feeds)
        for hook in hooks:
            hook.remove()
        yield own_error(rounded, plain)


def diverging(model: Any, runtime: Runtime, quant: str, context: int) -> dict[str, Any]:
    """How much fewer bits change what the model says about a text that it writes itself.

    Raises:
        ExportError: if that is beyond use.
    """
    ids = trial_inputs.written(decoder_subject(model))[:, : min(context, PLACES)]
    feeds = {"input_ids": ids}
    return divergence.judge([(runtime.run(feeds), subject_of(model).run(feeds))], quant).to_dict()


def greedy(subject: Subject, runtime: Runtime) -> dict[str, int]:
    """How many tokens the model and llama.cpp write alike after the same prompt, each reading its own."""
    ids = torch.randint(0, subject.vocabulary, (1, _PROMPT), generator=torch.Generator().manual_seed(0))
    found, wanted = runtime.continued(ids[0].tolist(), _GREEDY), ids
    for _ in range(_GREEDY):
        logits = subject.run({"input_ids": wanted})["logits"]
        wanted = torch.cat([wanted, logits[:, -1].argmax(-1, keepdim=True)], 1)
    pairs = zip(found, wanted[0, _PROMPT:].tolist(), strict=True)
    return {"tokens": _GREEDY, "equal": next((i for i, (a, b) in enumerate(pairs) if a != b), _GREEDY)}


def same_tokens(source: Path, runtime: Runtime, pieces: bool) -> tuple[int, list[str]]:
    """How many texts llama.cpp and the tokenizer of a folder cut alike, and notes.

    Before pieces of text llama.cpp always puts a space; tokenizers may not where the text begins with one.

    Raises:
        ExportError: if they cut one differently.
    """
    tokenizer = model_folder.tokenizer(source)
    differing = [text for text in _TEXTS if not _alike(tokenizer, runtime, text)]
    for text in differing:
        if not (pieces and text.startswith(" ") and _alike(tokenizer, runtime, text.lstrip(" "))):
            raise ExportError(
                f"llama.cpp cuts {text!r} into tokens {runtime.tokens(text)}, the tokenizer of {source} otherwise; "
                "take the tokenizer's files out of the folder, then the export has weights alone, for token ids"
            )
    notes = ["llama.cpp puts a space before texts that begin with one, the tokenizer does not"] * bool(differing)
    return len(_TEXTS) - len(differing), notes


def _alike(tokenizer: Any, runtime: Runtime, text: str) -> bool:
    wanted: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return runtime.tokens(text) == wanted
