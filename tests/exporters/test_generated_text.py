"""Texts that a decoder generates for its own checks, with its cache or without one."""

from collections.abc import Callable

import torch
from torch import nn

from graphprune.exporters.gguf_tools.gguf_runtime import subject_of
from graphprune.exporters.subjects.decoders import decoder_subject
from graphprune.exporters.subjects.trial_inputs import generated_text


def test_a_decoder_writes_the_same_with_and_without_its_cache(model: Callable[..., nn.Module]) -> None:
    llama = model("llama").train(False)
    with_cache = generated_text(decoder_subject(llama), length=12)
    without = generated_text(subject_of(llama), length=12)
    assert with_cache.shape == (2, 12) and torch.equal(with_cache, without)
    assert len(set(with_cache.flatten().tolist())) > 6
