"""Decoders with sliding windows, whose cache holds all tokens in an exported file: only masks may know the window."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphprune.errors import ExportError
from graphprune.exporters.subjects.model_caches import named_cache
from graphprune.support.packages import transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SLIDING = "DynamicSlidingWindowLayer"  # of the cache that transformers makes for windows, and for chunks of attention

_FIELDS = ("sliding_window", "attention_chunk_size")
_WINDOW, _TOKENS, _LAST = 4, 19, 3  # of the trial; the tokens fill several chunks, and the last one in part


def require_windows_of_masks(model: PreTrainedModel) -> int:
    """The tokens that a layer with a window sees, after a trial: with a narrow window, the last tokens of a text must
    have the same logits with all tokens before them in the cache as without a cache.

    Raises:
        ExportError: if they differ, or the window is not in the configuration.
    """
    config = model.config.get_text_config()
    name = next((field for field in _FIELDS if getattr(config, field, None)), None)
    if name is None:
        raise ExportError(
            f"{type(model).__name__} has a cache of {SLIDING}, but its configuration has neither "
            f"{' nor '.join(_FIELDS)}: it cannot be exported with a cache"
        )
    window = int(getattr(config, name))
    ids = torch.arange(_TOKENS)[None] % config.vocab_size
    wide = _uncached(model, ids)
    with _narrowed(config, name):
        narrow, cached = _uncached(model, ids), _cached(model, ids)
    negligible = torch.finfo(narrow.dtype).eps ** 0.5 * float(narrow.abs().max())
    if window >= _TOKENS and float((wide - narrow).abs().max()) <= negligible:
        raise ExportError(
            f"the logits of {type(model).__name__} are the same with a {name} of {_WINDOW} and of {window}, so that "
            "its windows cannot be tried; it cannot be exported with a cache"
        )
    if not float((cached - narrow[:, -_LAST:]).abs().max()) <= negligible:
        raise ExportError(
            f"{type(model).__name__} has other logits where its cache holds tokens before the {name}; it cannot be "
            "exported with a cache"
        )
    return window


@contextmanager
def _narrowed(config: Any, name: str) -> Iterator[None]:
    before = getattr(config, name)
    setattr(config, name, _WINDOW)
    try:
        yield
    finally:
        setattr(config, name, before)


@torch.no_grad()
def _uncached(model: PreTrainedModel, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


@torch.no_grad()
def _cached(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The logits of the last tokens; the others are in a cache of all tokens."""
    cache = named_cache(model, transformers.DynamicCache())
    model(input_ids=ids[:, :-_LAST], use_cache=True, **cache)
    logits: Tensor = model(input_ids=ids[:, -_LAST:], use_cache=True, **cache).logits
    return logits
