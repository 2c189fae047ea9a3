"""Text that a language model generates itself: near its training data, which is often unknown or too large."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from graphprune.display.progress import progress
from graphprune.errors import CalibrationError
from graphprune.huggingface import model_folder
from graphprune.support import cache
from graphprune.support.packages import transformers

FILE = "windows.safetensors"
ROWS = 64  # windows that are generated at once, or fewer where their cache of keys and values would exceed CACHE
CACHE = 1 << 30  # bytes
#: Tokens are drawn from the distribution of the model itself, whatever its folder prefers.
SAMPLING: dict[str, Any] = {
    "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip


def generated(folder: Path, samples: int, length: int, seed: int) -> Tensor:
    """Windows of token ids drawn from the distribution of the model of a folder, shape (samples, length).

    A window follows the tokens that the tokenizer puts before every text; without any, it starts with a random token
    (LLM-QAT, arXiv:2305.17888). It may hold ends of documents. The windows are kept in the cache of the user.

    Raises:
        CalibrationError: if the model does not generate text, or is in no folder of transformers.
        LoadError: if the folder holds no complete model, or the cache cannot be written.
    """
    if not model_folder.is_folder(folder):
        raise CalibrationError(f"{folder} is no model folder of transformers, which could generate text; name a file")
    settings = model_folder.config(folder)
    if not model_folder.generates_text(model_folder.model_class(folder, settings), settings):
        raise CalibrationError(f"the model of {folder} does not generate text; name a text file as calibration text")

    def make(target: Path) -> None:
        save_file({"ids": _generate(folder, samples, length, seed)}, target / FILE)

    kind = f"generated-{samples}x{length}-{seed}"
    return load_file(cache.once(kind, model_folder.weight_files(folder), make) / FILE)["ids"]


def _generate(folder: Path, samples: int, length: int, seed: int) -> Tensor:
    model, tokenizer = model_folder.module(folder), model_folder.tokenizer(folder)
    first = tokenizer("", verbose=False)["input_ids"]
    rows = max(1, min(ROWS, CACHE // (length * _cached_bytes(model.config.get_text_config()))))
    parts = torch.split(torch.arange(samples), rows)
    with progress("generating text", length * len(parts)) as step, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.cat([_windows(model, _starts(tokenizer, first, len(part)), length, step) for part in parts])


def _starts(tokenizer: Any, first: list[int], rows: int) -> Tensor:
    """The first tokens of texts: those that are not part of the text, or ordinary ones drawn at random."""
    if first:
        return torch.tensor([first] * rows)
    ordinary = sorted(set(range(tokenizer.vocab_size)) - set(tokenizer.all_special_ids))
    return torch.tensor(ordinary)[torch.randint(len(ordinary), (rows, 1))]


def _windows(model: Any, starts: Tensor, length: int, step: Callable[[], None]) -> Tensor:
    def tick(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        step()
        return torch.zeros(len(ids), dtype=torch.bool)

    make: Any = transformers.GenerationConfig
    model.generation_config = make(**SAMPLING, max_new_tokens=length)
    criteria = transformers.StoppingCriteriaList([tick])
    ids: Tensor = model.generate(starts, attention_mask=torch.ones_like(starts), stopping_criteria=criteria)
    return ids[:, -length:].contiguous()


def _cached_bytes(settings: Any) -> int:
    """Bytes of keys and values for a token, about."""
    heads = int(getattr(settings, "num_attention_heads", 1) or 1)
    groups = int(getattr(settings, "num_key_value_heads", heads) or heads)
    width = int(getattr(settings, "head_dim", None) or settings.hidden_size // heads)
    return 2 * int(settings.num_hidden_layers) * groups * width * torch.float32.itemsize
