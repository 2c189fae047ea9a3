"""Fields of a Hugging Face config that give layers the biases added by a refit, identified by building models."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING

from graphprune.errors import ExportError
from graphprune.huggingface.meta_models import as_text, from_table, summarize, try_build

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def with_parameters(config: PreTrainedConfig, names: Collection[str]) -> PreTrainedConfig:
    """A copy of `config` whose stock class also has parameters of these names; only fields named after biases are set.

    Raises:
        ExportError: if no such field adds one of them; names the first.
    """
    table, summary = json.loads(as_text(config)), try_build(type(config), as_text(config))
    fields = [key for key, value in table.items() if "bias" in key and value is False]
    for field in fields:
        if isinstance(summary, str) or not set(names) - summary.shapes.keys():
            break
        candidate = {**table, field: True}
        trial = try_build(type(config), json.dumps(candidate, sort_keys=True))
        adds = not isinstance(trial, str) and trial.shapes.keys() > summary.shapes.keys()
        if not isinstance(trial, str) and adds and trial.shapes.keys() & (set(names) - summary.shapes.keys()):
            table, summary = candidate, trial
    missing = sorted(set(names) - (set() if isinstance(summary, str) else summary.shapes.keys()))
    if missing:
        model = (config.architectures or ["the model"])[0]
        attempts = f", nor with {' or '.join(fields)} set" if fields else ""
        raise ExportError(f"{model} has no parameter {missing[0]!r}{attempts}")
    return from_table(type(config), table)


def parameters(config: PreTrainedConfig) -> set[str]:
    """Names of all parameters and buffers of the stock class.

    Raises:
        ExportError: if the class cannot be built.
    """
    return set(summarize(config).shapes)
