"""Language models with an internal cache of static size, called with tokens and their positions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from graphprune.errors import ExportError
from graphprune.exporters.subjects.decoders import decoder_subject
from graphprune.exporters.subjects.model_caches import named_cache
from graphprune.exporters.subjects.subject import PAST, Subject
from graphprune.exporters.subjects.trial_inputs import Case
from graphprune.support.packages import transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import StaticLayer

_LENGTH = 512
_PROMPT, _CONTINUATION = 4, 20


class StaticDecoder(nn.Module):
    """A decoder that writes keys and values into buffers of `length` positions; heads and head dim as in each layer."""

    def __init__(self, model: PreTrainedModel, length: int, chunk: int) -> None:
        super().__init__()
        self.model, self.length, self.chunk = model, length, chunk
        sizes = {n: t.shape for n, t in decoder_subject(model).example().items() if n.startswith(PAST)}
        for name, (_, heads, _, width) in sizes.items():
            self.register_buffer(_buffer(name), torch.zeros(1, heads, length, width), persistent=False)
        self.layers = len(sizes) // 2
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def forward(self, input_ids: Tensor, cache_position: Tensor) -> Tensor:
        """Logits of shape (1, tokens, vocabulary) for ids of shape (1, tokens) at positions of shape (tokens,)."""
        cache = transformers.Cache(layers=[self._layer(i, cache_position) for i in range(self.layers)])
        positions = {"position_ids": cache_position[None]} if self.takes_positions else {}
        logits: Tensor = self.model(
            input_ids=input_ids, use_cache=True, **named_cache(self.model, cache), **positions
        ).logits
        return logits

    def _layer(self, i: int, cache_position: Tensor) -> StaticLayer:
        """A cache layer filled up to these positions. Each call builds a new one: buffers held by an object outside the
        module would become constants of the exported program."""
        layer = transformers.cache_utils.StaticLayer(self.length)
        layer.keys, layer.values = (self.get_buffer(_buffer(f"{PAST}.{i}.{kind}")) for kind in ("key", "value"))
        layer.dtype, layer.device = layer.keys.dtype, layer.keys.device
        layer.cumulative_length = cache_position[0].clone()
        layer.is_initialized = True
        return layer


def _buffer(name: str) -> str:
    return name.replace(".", "_")


class Uncached(nn.Module):
    """The model of a static decoder, run on whole texts without a cache: the reference for comparison."""

    def __init__(self, decoder: StaticDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of shape (batch, tokens, vocabulary)."""
        logits: Tensor = self.decoder.model(input_ids=input_ids, use_cache=False).logits
        return logits


def static_subject(model: PreTrainedModel, static: Mapping[str, int]) -> Subject:
    """A decoder with a cache of ``past`` positions that takes up to ``sequence`` tokens a call.

    The module of the subject maps whole texts to logits; ``module.decoder`` is the module to export.

    Raises:
        ExportError: if the batch size is not 1, or the sizes do not fit each other or the model.
    """
    most = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or _LENGTH)
    length, chunk = static.get("past", min(_LENGTH, most)), static.get("sequence", 1)
    if static.get("batch", 1) != 1 or not 1 <= chunk < length <= most:
        raise ExportError(
            f"static sizes {dict(static)} do not fit this model: expected batch=1, sequence=N tokens a call, and a "
            f"cache of past=N positions, more than sequence and at most {most}"
        )
    decoder = StaticDecoder(model, length, chunk)
    ids = torch.zeros(1, min(length, chunk + _CONTINUATION), dtype=torch.long)
    vocabulary = model.config.get_text_config().vocab_size
    return Subject(Uncached(decoder), (ids,), ("input_ids",), ("logits",), None, vocabulary)


def greedy_case(subject: Subject) -> Case:
    """The case of the greedy continuation of a random prompt: equal choices at every token give equal generation."""
    ids = torch.randint(0, subject.vocabulary, (1, _PROMPT), generator=torch.Generator().manual_seed(0))
    while ids.shape[1] < subject.args[0].shape[1]:
        ids = torch.cat([ids, subject.run({"input_ids": ids})["logits"][:, -1:].argmax(-1)], 1)
    return f"the likeliest text after {_PROMPT} tokens", {"input_ids": ids}, {}


@dataclass(frozen=True)
class Stepwise:
    """A static decoder of a runtime, called by `step`, on whole texts: in parts of `chunk` tokens, then one by one."""

    step: Callable[[Tensor, Tensor], Tensor]
    chunk: int

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits of all tokens."""
        return {"logits": self.read(feeds["input_ids"], 0)}

    def read(self, ids: Tensor, offset: int) -> Tensor:
        """Logits of tokens that follow `offset` others."""
        logits, position, length = list[Tensor](), 0, ids.shape[1]
        while position < length:
            end = position + (self.chunk if position + self.chunk <= length else 1)
            logits.append(self.step(ids[:, position:end].contiguous(), torch.arange(offset + position, offset + end)))
            position = end
        return torch.cat(logits, 1)
