"""Decoders with a cache under either name: `past_key_values`, or `cache` as of transformers 5.24."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from graphprune.errors import ExportError
from graphprune.exporters.subjects.decoders import decoder_subject
from graphprune.exporters.subjects.model_caches import named_cache


class Renamed:
    """A decoder's `forward` with the cache under the newer name."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: Any = None, use_cache: bool = True
    ) -> ModelOutput:
        named = named_cache(super(), cache)  # type: ignore[arg-type]
        output = super().forward(input_ids, attention_mask, **named, use_cache=use_cache)  # type: ignore[misc]
        return ModelOutput(logits=output.logits, cache=output[next(iter(named))])  # type: ignore[no-untyped-call]


class WithoutCache:
    """A decoder's `forward` that takes no cache."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return super().forward(input_ids, attention_mask)  # type: ignore[misc]


def changed(model: Any, change: type) -> Any:
    model.__class__ = type(type(model).__name__, (change, type(model)), {})
    return model


def test_a_cache_has_either_name(tiny: Callable[..., Any]) -> None:
    original, renamed = decoder_subject(tiny("llama")), decoder_subject(changed(tiny("llama"), Renamed))
    feeds = {name: original.example()[name] for name in renamed.inputs}
    expected = original.run({**original.example(), **feeds})
    for name, got in renamed.run(feeds).items():
        torch.testing.assert_close(got, expected[name])


def test_a_decoder_without_cache_is_refused(tiny: Callable[..., Any]) -> None:
    with pytest.raises(ExportError, match="LlamaForCausalLM.forward has no cache; decoders without it cannot be"):
        decoder_subject(changed(tiny("llama"), WithoutCache))
