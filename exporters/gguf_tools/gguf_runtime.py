"""Comparison of a GGUF file, run in llama.cpp, with the model that it was exported from."""

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
from graphprune.exporters.checks.validation import MARGIN, Reference, half_precision_error
from graphprune.exporters.subjects import trial_inputs
from graphprune.exporters.subjects.subject import Subject, named_dimensions
from graphprune.huggingface import model_folder
from graphprune.support.packages import load

PACKAGE, _LOGGER = "llama_cpp", "llama-cpp-python"
MAX_TOKENS = 64
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
    """A decoder as a subject that takes whole texts, without a cache."""
    names, args = ("input_ids",), (torch.ones(2, 3, dtype=torch.long),)
    size = int(model.config.vocab_size)
    return Subject(_Logits(model), args, names, ("logits",), named_dimensions(names, args), size, model.dtype)


@dataclass
class Runtime:
    """A file opened in llama.cpp, with its cache in float32 to add no rounding."""

    library: Any

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits of texts; of each, the first half is processed at once and the second token by token."""
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
        """Greedy tokens after a prompt."""
        new: list[int] = []
        self.library.reset()
        self.library.eval(ids)
        for _ in range(count):
            new.append(int(self.library.scores[self.library.n_tokens - 1].argmax()))
            self.library.eval(new[-1:])
        return new

    def tokens(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        ids: list[int] = self.library.tokenize(text.encode("utf-8"), add_bos=False, special=False)
        return ids


def open_file(path: Path, context: int) -> Runtime:
    """A file opened in llama.cpp, for texts of up to `context` tokens.

    Raises:
        PackageError: if llama-cpp-python is missing or broken.
        ExportError: if llama.cpp does not load the file.
    """
    library = load(PACKAGE, "gguf")
    log = io.StringIO()
    try:
        with redirect_stderr(log):  # llama.cpp prints the reason for a failure there
            model = library.Llama(
                str(path), n_ctx=context, logits_all=True, verbose=True, n_gpu_layers=0,
                n_threads=torch.get_num_threads(), n_threads_batch=torch.get_num_threads(),
                type_k=library.GGML_TYPE_F32, type_v=library.GGML_TYPE_F32,
            )  # fmt: skip
            model.verbose = False
    except (ValueError, RuntimeError, AssertionError) as fault:
        why = [line.strip() for line in log.getvalue().splitlines() if "error" in line.lower()]
        raise ExportError(f"llama.cpp does not load {path.name}: {why[0] if why else fault}") from fault
    finally:
        logging.getLogger(_LOGGER).setLevel(logging.CRITICAL)
    return Runtime(model)


def reference_of(model: Any, dtype: str, tabulated: bool) -> Reference:
    """The reference in float32, with weights rounded as in the file, and the tolerated error of llama.cpp.

    Activations that llama.cpp has `tabulated` are rounded to half precision. With weights in half precision it also
    rounds the inputs of products: the tolerance is a multiple of the change that this rounding causes in PyTorch.

    Raises:
        ExportError: if that change is too large.
    """
    if dtype == "fp32" and not tabulated:
        return Reference(subject_of(model), parity.FLOAT32)
    rounded = deepcopy(model)
    for activation in (part for name, part in rounded.named_modules() if tabulated and name.endswith(".act_fn")):
        activation.register_forward_pre_hook(lambda _, args: (_halved(args[0]),))
        activation.register_forward_hook(lambda _, args, output: _halved(output))
    if dtype == "fp32":
        return Reference(subject_of(rounded), parity.FLOAT16)
    with torch.no_grad():
        for matrix in (parameter for parameter in rounded.parameters() if parameter.dim() > 1):
            matrix.copy_(matrix.half())
    subject = subject_of(rounded)
    rounding_error = max(_rounding_errors(subject))
    return Reference(subject, max(parity.FLOAT16, MARGIN * rounding_error), rounding_error)


def _rounding_errors(subject: Subject) -> Iterator[float]:
    """Change of the outputs, by case, when the inputs of all linear layers are rounded to half precision."""
    for _, feeds, _ in trial_inputs.cacheless_cases(subject):
        plain = subject.run(feeds)
        hooks = [
            module.register_forward_pre_hook(lambda _, args: (_halved(args[0]),))
            for module in subject.module.modules()
            if isinstance(module, nn.Linear)
        ]
        rounded = subject.run(feeds)
        for hook in hooks:
            hook.remove()
        yield half_precision_error(rounded, plain)


def _halved(values: Tensor) -> Tensor:
    return values.half().to(values.dtype)


def divergence_of(model: Any, runtime: Runtime, quant: str, context: int) -> dict[str, Any]:
    """Divergence of the quantized file from the model on a text that the model generates.

    Raises:
        ExportError: if it is above the bound of this precision.
    """
    subject = subject_of(model)
    feeds = {"input_ids": trial_inputs.generated_text(subject, length=min(context, MAX_TOKENS))}
    return divergence.measure([(runtime.run(feeds), subject.run(feeds))], quant).to_dict()


def compare_greedy(subject: Subject, runtime: Runtime) -> dict[str, int]:
    """Number of equal greedy tokens of the model and of llama.cpp after the same prompt, each with its own context."""
    ids = torch.randint(0, subject.vocabulary, (1, _PROMPT), generator=torch.Generator().manual_seed(0))
    generated, expected = runtime.continued(ids[0].tolist(), _GREEDY), ids
    for _ in range(_GREEDY):
        logits = subject.run({"input_ids": expected})["logits"]
        expected = torch.cat([expected, logits[:, -1].argmax(-1, keepdim=True)], 1)
    pairs = zip(generated, expected[0, _PROMPT:].tolist(), strict=True)
    return {"tokens": _GREEDY, "equal": next((i for i, (a, b) in enumerate(pairs) if a != b), _GREEDY)}


def compare_tokenizers(source: Path, runtime: Runtime, pieces: bool) -> tuple[int, list[str]]:
    """Number of texts that llama.cpp and the tokenizer of a folder tokenize equally, and notes.

    With SentencePiece vocabularies (`pieces`) llama.cpp always puts a space before the text; a tokenizer may not if the
    text begins with one.

    Raises:
        ExportError: if they tokenize a text differently.
    """
    tokenizer = model_folder.tokenizer(source)
    differing = [text for text in _TEXTS if not _same_ids(tokenizer, runtime, text)]
    for text in differing:
        if not (pieces and text.startswith(" ") and _same_ids(tokenizer, runtime, text.lstrip(" "))):
            raise ExportError(
                f"llama.cpp tokenizes {text!r} as {runtime.tokens(text)}, unlike the tokenizer of {source}; to export "
                "weights for token ids only, remove the tokenizer's files from the folder"
            )
    notes = ["llama.cpp puts a space before texts that begin with one, the tokenizer does not"] * bool(differing)
    return len(_TEXTS) - len(differing), notes


def _same_ids(tokenizer: Any, runtime: Runtime, text: str) -> bool:
    expected: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return runtime.tokens(text) == expected
