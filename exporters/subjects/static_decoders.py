"""Language models with a cache of fixed size inside, which are called with tokens and their positions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from graphprune.errors import ExportError
from graphprune.exporters.subjects.decoders import decoder_subject
from graphprune.exporters.subjects.subject import PAST, Subject
from graphprune.exporters.subjects.trial_inputs import Case
from graphprune.support.packages import transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import StaticLayer

_LENGTH = 512
_PROMPT, _WRITTEN = 4, 20


class StaticDecoder(nn.Module):
    """A decoder that writes keys and values into buffers of `length` places, in the sizes of each layer."""

    def __init__(self, model: PreTrainedModel, length: int, at_once: int) -> None:
        super().__init__()
        self.model, self.length, self.at_once = model, length, at_once
        sizes = {n: t.shape for n, t in decoder_subject(model).example().items() if n.startswith(PAST)}
        for name, (_, heads, _, width) in sizes.items():
            self.register_buffer(_buffer(name), torch.zeros(1, heads, length, width), persistent=False)
        self.layers = len(sizes) // 2
        self.positions = "position_ids" in inspect.signature(model.forward).parameters

    def forward(self, input_ids: Tensor, cache_position: Tensor) -> Tensor:
        """Logits of shape (1, tokens, vocabulary), of tokens of shape (1, tokens) at positions of shape (tokens,)."""
        cache = transformers.Cache(layers=[self._layer(i, cache_position) for i in range(self.layers)])
        place = {"position_ids": cache_position[None]} if self.positions else {}
        logits: Tensor = self.model(input_ids=input_ids, past_key_values=cache, use_cache=True, **place).logits
        return logits

    def _layer(self, i: int, cache_position: Tensor) -> StaticLayer:
        """A layer of the cache that was filled up to these positions. It is made anew in every call: buffers that an
        object holds besides the module would be constants of the exported program."""
        layer = transformers.cache_utils.StaticLayer(self.length)
        layer.keys, layer.values = (self.get_buffer(_buffer(f"{PAST}.{i}.{kind}")) for kind in ("key", "value"))
        layer.dtype, layer.device = layer.keys.dtype, layer.keys.device
        layer.cumulative_length = cache_position[0].clone()
        layer.is_initialized = True
        return layer


def _buffer(name: str) -> str:
    return name.replace(".", "_")


class WholeText(nn.Module):
    """The same model reading a text at once, without any cache: what a static decoder is compared with."""

    def __init__(self, decoder: StaticDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of shape (batch, tokens, vocabulary)."""
        logits: Tensor = self.decoder.model(input_ids=input_ids, use_cache=False).logits
        return logits


def static_subject(model: PreTrainedModel, static: Mapping[str, int]) -> Subject:
    """A decoder with a cache of `past` places that takes up to `sequence` tokens at once, as a module from text to
    logits: ``module.decoder`` is what is exported.

    Raises:
        ExportError: if there are more texts than one, or the sizes do not fit each other or the model.
    """
    most = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or _LENGTH)
    length, at_once = static.get("past", min(_LENGTH, most)), static.get("sequence", 1)
    if static.get("batch", 1) != 1 or not 1 <= at_once < length <= most:
        raise ExportError(
            f"static sizes {dict(static)} do not fit this model: it reads one text, batch=1, in parts of sequence=N "
            f"tokens, into a cache of past=N places, more than such a part and at most {most}"
        )
    decoder = StaticDecoder(model, length, at_once)
    ids = torch.zeros(1, min(length, at_once + _WRITTEN), dtype=torch.long)
    vocabulary = model.config.get_text_config().vocab_size
    return Subject(WholeText(decoder), (ids,), ("input_ids",), ("logits",), None, vocabulary)


def likeliest(subject: Subject) -> Case:
    """The text that a model prefers after a random prompt: a decoder that picks the same tokens there writes it too."""
    ids = torch.randint(0, subject.vocabulary, (1, _PROMPT), generator=torch.Generator().manual_seed(0))
    while ids.shape[1] < subject.args[0].shape[1]:
        ids = torch.cat([ids, subject.run({"input_ids": ids})["logits"][:, -1:].argmax(-1)], 1)
    return f"the likeliest text after {_PROMPT} tokens", {"input_ids": ids}, {}


@dataclass(frozen=True)
class Stepwise:
    """A static decoder of a runtime, `step`, on a text from its first token on: in parts as large as it takes, the
    rest token by token."""

    step: Callable[[Tensor, Tensor], Tensor]
    at_once: int

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The logits of all tokens."""
        return {"logits": self.read(feeds["input_ids"], 0)}

    def read(self, ids: Tensor, before: int) -> Tensor:
        """The logits of tokens that follow on `before` others."""
        found, done, length = list[Tensor](), 0, ids.shape[1]
        while done < length:
            end = done + (self.at_once if done + self.at_once <= length else 1)
            found.append(self.step(ids[:, done:end].contiguous(), torch.arange(before + done, before + end)))
            done = end
        return torch.cat(found, 1)
