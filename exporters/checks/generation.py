"""Greedy generation from an exported decoder with ONNX Runtime alone."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import ExportError, LoadError, because
from graphprune.exporters.onnx_tools.onnx_files import MODEL, model_file
from graphprune.exporters.onnx_tools.sessions import CPU, OnnxRunner, open_model
from graphprune.exporters.subjects.subject import PAST, next_cache
from graphprune.huggingface import model_folder
from graphprune.support.packages import transformers


def generate(folder: Path | str, prompt: str, max_new_tokens: int = 32, *, provider: str = CPU) -> str:
    """Continue `prompt` greedily, up to an end token; returns only the new text.

    Raises:
        ExportError: if the folder has no exported decoder or no tokenizer.
    """
    folder = Path(folder)
    tokenizer = _tokenizer(folder)
    ids = torch.tensor([tokenizer(prompt)["input_ids"]], dtype=torch.long)
    if not ids.numel():
        raise ExportError("the prompt has no tokens; give at least one word")
    decoder = Decoder(open_decoder(folder, provider))
    new: list[int] = []
    for token in decoder.tokens(ids, max_new_tokens):
        if token in end_tokens(folder):
            break
        new.append(token)
    text: str = tokenizer.decode([*ids[0].tolist(), *new], skip_special_tokens=True)
    start: str = tokenizer.decode(ids[0].tolist(), skip_special_tokens=True)
    return text[len(start) :]


def open_decoder(folder: Path, provider: str = CPU) -> OnnxRunner:
    """The exported decoder of a folder.

    Raises:
        ExportError: if there is none.
    """
    path = model_file(folder)
    if path is None:
        raise ExportError(f"{folder} has no {MODEL}; export a model there first")
    runner = open_model(path, provider)
    if not any(name.startswith(f"{PAST}.") for name in runner.inputs):
        raise ExportError(f"{path} has no inputs {PAST}: it is not a decoder and cannot generate text")
    return runner


@dataclass
class Decoder:
    """A decoder file that is run token by token with the cache that it returns."""

    runner: OnnxRunner

    def tokens(self, ids: Tensor, count: int, *, excluded: Collection[int] = ()) -> Iterator[int]:
        """Greedy next tokens after `ids`, shape (1, length), other than those `excluded`."""
        past, cached = self.empty(), 0
        for _ in range(count):
            logits, past = self.step(ids, cached, past)
            scores = logits[0, -1].index_fill(0, torch.tensor(list(excluded), dtype=torch.long), -torch.inf)
            cached, token = ids.shape[1], int(scores.argmax())
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
            yield token

    def step(self, ids: Tensor, cached: int, past: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of the tokens after the first `cached` ones, whose cache is `past`, and the new cache."""
        outputs = self.runner.run({**self._feeds(ids, cached), **past})
        return outputs["logits"], next_cache(outputs)

    @torch.no_grad()
    def logits(self, input_ids: Tensor) -> Tensor:
        """Logits of whole windows of tokens, shape (batch, length, vocabulary)."""
        return self.step(input_ids, 0, self.empty(len(input_ids)))[0].float()

    def empty(self, batch: int = 1) -> dict[str, Tensor]:
        """A cache of length 0, with the heads and head dim of each layer."""
        values = {n: value.shape for n, value in self.runner.inputs.items() if n.startswith(f"{PAST}.")}
        return {name: torch.zeros(batch, shape[1], 0, shape[3]) for name, shape in values.items()}

    def _feeds(self, ids: Tensor, cached: int) -> dict[str, Tensor]:
        feeds = {"input_ids": ids[:, cached:], "attention_mask": torch.ones_like(ids)}
        if "position_ids" in self.runner.inputs:
            feeds["position_ids"] = torch.arange(cached, ids.shape[1]).expand(len(ids), -1)
        return feeds


def end_tokens(folder: Path) -> set[int]:
    """End-of-text tokens in the folder's settings."""
    return token_ids(folder, "eos_token_id")


def token_ids(folder: Path, name: str) -> set[int]:
    """Special tokens under a name in the folder's settings: one, several or none."""
    for file in ("generation_config.json", "config.json"):
        path = folder / file
        ids: Any = model_folder.read_json(path).get(name) if path.is_file() else None
        if ids is not None:
            return set(ids) if isinstance(ids, list) else {ids}
    return set()


def _tokenizer(folder: Path) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, LoadError) as fault:
        raise ExportError(f"{folder} has no tokenizer that transformers can read{because(fault)}") from fault
