"""Language models with their key/value cache as plain inputs and outputs."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphprune.errors import ExportError
from graphprune.exporters.subjects.subject import PAST, PRESENT, Alias, Subject, cache_names, named_dimensions
from graphprune.huggingface import model_folder
from graphprune.huggingface.meta_models import is_model
from graphprune.support.packages import transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pairs = list[tuple[Tensor, Tensor]]

# Names of the cache among the arguments and outputs of transformers 5.24 and later, and of earlier versions.
_CACHE_NAMES = ("cache", "past_key_values")

# All sizes of an example differ, so that torch.export does not take two of them for one.
_BATCH, _SEQUENCE, _CACHED = 2, 3, 4


class _Cached(Alias):
    """Runs a model with its cache as a list of (key, value) pairs."""

    def _run(self, past: Pairs, **inputs: Tensor) -> tuple[Tensor, Pairs]:
        cache = named_cache(self.model_itself, transformers.DynamicCache(past))
        output = self.model_itself(**inputs, **cache, use_cache=True)
        return output.logits, [(layer.keys, layer.values) for layer in cache_of(output).layers]


class CachedDecoder(_Cached):
    """A decoder that takes the cache as a list of (key, value) pairs and returns the logits and the new list."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past_key_values: Pairs
    ) -> tuple[Tensor, Pairs]:
        """Logits of shape (batch, sequence, vocabulary); keys and values of shape (batch, heads, total, head dim)."""
        return self._run(past_key_values, input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)


class CachedDecoderWithoutPositions(_Cached):
    """A `CachedDecoder` for models that compute positions themselves."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Pairs) -> tuple[Tensor, Pairs]:
        """Logits, keys and values, of the same shapes as those of `CachedDecoder`."""
        return self._run(past_key_values, input_ids=input_ids, attention_mask=attention_mask)


def named_cache(model: nn.Module, cache: Any) -> dict[str, Any]:
    """The argument of `forward` that takes the cache, by its name in this version; empty if there is none."""
    signature = inspect.signature(model.forward).parameters
    return next(({name: cache} for name in _CACHE_NAMES if name in signature), {})


def cache_of(output: Any) -> Any:
    """The cache in a model's output, by its name in this version; None if there is none."""
    return next((output[name] for name in _CACHE_NAMES if name in output), None)


def is_decoder(model: nn.Module) -> bool:
    """Whether the model generates text from left to right."""
    return is_model(model) and model_folder.generates_text(type(model), model.config)


def cached_decoder(source: Path | nn.Module) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]:
    """A decoder with its cache as inputs and outputs: (module, args, kwargs, dynamic shapes for torch.export).

    Names of parameters are those of the wrapped model. The inputs ``past_key_values*`` may be narrowed.

    Raises:
        ExportError: if it is not a decoder, or its cache is not one key and one value tensor per layer.
    """
    subject = decoder_subject(model_folder.module(source) if isinstance(source, Path) else source)
    return subject.module, subject.args, {}, subject.free()


def decoder_subject(model: nn.Module) -> Subject:
    """A decoder with example inputs whose sizes are all distinct and greater than 1.

    Raises:
        ExportError: if it is not a decoder, or its cache is not one key and one value tensor per layer.
    """
    if not is_model(model) or not is_decoder(model):
        raise ExportError(f"{type(model).__name__} is not a decoder; only a causal language model has a cache")
    _require(model)
    positions = "position_ids" in inspect.signature(model.forward).parameters
    wrapper = (CachedDecoder if positions else CachedDecoderWithoutPositions)(model)
    past = _example_past(model)
    ids = torch.arange(_BATCH * _SEQUENCE).view(_BATCH, _SEQUENCE) % model.config.get_text_config().vocab_size
    mask = torch.ones(_BATCH, _SEQUENCE + _CACHED, dtype=torch.long)
    place = torch.arange(_CACHED, _CACHED + _SEQUENCE).expand(_BATCH, -1).contiguous()
    args = (ids, mask, place, past) if positions else (ids, mask, past)
    names = ["input_ids", "attention_mask", *["position_ids"] * positions, *cache_names(PAST, len(past))]
    return Subject(
        wrapper, args, tuple(names), ("logits", *cache_names(PRESENT, len(past))),
        named_dimensions(names, args), model.config.get_text_config().vocab_size, model.dtype,
    )  # fmt: skip


def _require(model: PreTrainedModel) -> None:
    signature = inspect.signature(model.forward).parameters
    present = {"attention_mask": "attention_mask" in signature, "cache": bool(named_cache(model, None))}
    if lacking := [name for name, there in present.items() if not there]:
        raise ExportError(f"{type(model).__name__}.forward has no {lacking[0]}; decoders without it cannot be exported")


def _example_past(model: PreTrainedModel) -> Pairs:
    """Keys and values that the model itself computes, layer by layer."""
    with torch.no_grad():
        ids = torch.zeros(_BATCH, _CACHED, dtype=torch.long)
        cache = cache_of(model(input_ids=ids, use_cache=True))
    layers = getattr(cache, "layers", None)
    if not layers or any(type(layer) is not transformers.cache_utils.DynamicLayer for layer in layers):
        kinds = sorted({type(layer).__name__ for layer in layers or ()}) or [type(cache).__name__]
        raise ExportError(
            f"{type(model).__name__} has a cache of {', '.join(kinds)}; only full attention, with one key and one "
            "value tensor per layer (DynamicLayer), can be exported with a cache"
        )
    return [(layer.keys.clone(), layer.values.clone()) for layer in layers]
