"""Language models with their key/value cache as plain inputs and outputs."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphprune.errors import ExportError
from graphprune.exporters.subjects.model_caches import cache_of, named_cache
from graphprune.exporters.subjects.sliding_windows import SLIDING, require_windows_of_masks
from graphprune.exporters.subjects.subject import PAST, PRESENT, Alias, Subject, cache_names, named_dimensions
from graphprune.huggingface import model_folder
from graphprune.huggingface.meta_models import is_model
from graphprune.support.packages import transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pairs = list[tuple[Tensor, Tensor]]

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

    Layers of sliding windows have a cache of all tokens, of which the attention mask hides those before the window.

    Raises:
        ExportError: if it is not a decoder, or its cache is not one key and one value tensor per layer.
    """
    if not is_model(model) or not is_decoder(model):
        raise ExportError(f"{type(model).__name__} is not a decoder; only a causal language model has a cache")
    _require(model)
    positions = "position_ids" in inspect.signature(model.forward).parameters
    wrapper = (CachedDecoder if positions else CachedDecoderWithoutPositions)(model)
    past, window = _example_past(model)
    ids = torch.arange(_BATCH * _SEQUENCE).view(_BATCH, _SEQUENCE) % model.config.get_text_config().vocab_size
    mask = torch.ones(_BATCH, _SEQUENCE + _CACHED, dtype=torch.long)
    place = torch.arange(_CACHED, _CACHED + _SEQUENCE).expand(_BATCH, -1).contiguous()
    args = (ids, mask, place, past) if positions else (ids, mask, past)
    names = ["input_ids", "attention_mask", *["position_ids"] * positions, *cache_names(PAST, len(past))]
    return Subject(
        wrapper, args, tuple(names), ("logits", *cache_names(PRESENT, len(past))),
        named_dimensions(names, args), model.config.get_text_config().vocab_size, model.dtype, window,
    )  # fmt: skip


def _require(model: PreTrainedModel) -> None:
    signature = inspect.signature(model.forward).parameters
    present = {"attention_mask": "attention_mask" in signature, "cache": bool(named_cache(model, None))}
    if lacking := [name for name, there in present.items() if not there]:
        raise ExportError(f"{type(model).__name__}.forward has no {lacking[0]}; decoders without it cannot be exported")


def _example_past(model: PreTrainedModel) -> tuple[Pairs, int]:
    """Keys and values that the model itself computes, layer by layer, and the sliding window; 0 if there is none."""
    kinds = {type(layer).__name__ for layer in _layers(model, {})}
    lacking = kinds - {"DynamicLayer", SLIDING}
    if lacking or not kinds:
        raise ExportError(
            f"{type(model).__name__} has a cache of {', '.join(sorted(lacking)) or 'no layers'}; only attention with "
            "one key and one value tensor per layer (DynamicLayer, or a sliding window) can be exported with a cache"
        )
    window = require_windows_of_masks(model) if SLIDING in kinds else 0
    layers = _layers(model, named_cache(model, transformers.DynamicCache()))
    return [(layer.keys.clone(), layer.values.clone()) for layer in layers], window


def _layers(model: PreTrainedModel, cache: dict[str, Any]) -> list[Any]:
    with torch.no_grad():
        ids = torch.zeros(_BATCH, _CACHED, dtype=torch.long)
        return list(getattr(cache_of(model(input_ids=ids, use_cache=True, **cache)), "layers", None) or ())
